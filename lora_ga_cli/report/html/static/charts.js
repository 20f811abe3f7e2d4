"use strict";
(() => {
  const NEAREST = 8; // rows of the box beside the cursor
  const WEAK = 0.65; // opacity of thin lines
  const INCREMENTS = [...Array(10).keys()].flatMap((power) => [1, 2, 5].map((digit) => digit * 10 ** power)); // whole steps
  const groups = [];

  const short = (value) => {
    const size = Math.abs(value);
    if (value !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace("e+", "e");
    return value.toLocaleString("en-US", { maximumSignificantDigits: size >= 1e4 ? 6 : 4 });
  };

  // The numbers of an axis, with as many digits after the point as their distance needs.
  const ticks = (values) => {
    const known = values.filter((value) => value !== null);
    const largest = Math.max(...known.map(Math.abs));
    const digits = (value) => (String(Number(value.toPrecision(6))).split(".")[1] ?? "").length;
    const plain = largest === 0 || (largest >= 1e-4 && largest < 1e7);
    const options = { minimumFractionDigits: 0, maximumFractionDigits: Math.min(Math.max(0, ...known.map(digits)), 7) };
    return values.map((value) => (value === null ? "" : plain ? value.toLocaleString("en-US", options) : short(value)));
  };

  for (const script of document.querySelectorAll('script[type="application/json"]')) {
    const data = JSON.parse(script.textContent);
    if (!data?.charts) continue;
    const section = script.id.slice("data-".length);
    groups.push(makeGroup(data, document.querySelector(`[data-legend="${section}"]`)));
  }

  // The charts of one part: they share their runs, what is hidden, and the steps that are shown.
  function makeGroup(data, legend) {
    const group = { range: null, hiddenRuns: new Set(), hiddenKinds: new Set(), charts: [] };
    const swatches = [...legend.querySelectorAll("[data-run]")];
    group.color = (run) => getComputedStyle(swatches[run]).color;
    group.dashed = (run) => swatches[run].classList.contains("dashed");
    group.classes = (run) => swatches[run].className;
    group.several = data.runs.length > 1;
    group.name = (run) => data.runs[run];
    group.shows = (line) => !group.hiddenRuns.has(line.run) && !group.hiddenKinds.has(line.name);
    group.showAll = () => { group.range = null; for (const chart of group.charts) chart.fit(); };
    group.show = (low, high) => {
      group.range = [low, high];
      for (const chart of group.charts) chart.fit();
    };
    toggles(swatches, group.hiddenRuns, (item) => Number(item.dataset.run), group);
    toggles([...legend.querySelectorAll("[data-kind]")], group.hiddenKinds, (item) => item.dataset.kind, group);
    for (const chart of data.charts) group.charts.push(makeChart(chart, group));
    return group;
  }

  // The entries of a legend become buttons. With Alt, or a double click, only one is shown.
  function toggles(items, hidden, keyOf, group) {
    if (items.length < 2) return;
    const buttons = items.map((item) => {
      const button = document.createElement("button");
      const key = item.querySelector(".key");
      button.type = "button";
      button.className = "key";
      button.append(...key.childNodes);
      button.title = "Hide or show; Alt or a double click shows only this one";
      key.replaceWith(button);
      return button;
    });
    const update = () => {
      buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(!hidden.has(keyOf(items[index])))));
      for (const chart of group.charts) chart.visibility();
    };
    const only = (index) => {
      hidden.clear();
      items.forEach((item, other) => { if (other !== index) hidden.add(keyOf(item)); });
    };
    buttons.forEach((button, index) => {
      button.addEventListener("click", (event) => {
        const key = keyOf(items[index]);
        if (event.detail === 2 || event.altKey) {
          const alone = !hidden.has(key) && hidden.size === items.length - 1;
          if (alone) hidden.clear(); else only(index);
        } else if (!hidden.delete(key)) {
          hidden.add(key);
        }
        update();
      });
    });
    update();
  }

  function makeChart(spec, group) {
    const figure = document.getElementById(`chart-${spec.key}`);
    const holder = figure.querySelector(".plot");
    const table = uPlot.join(spec.lines.map((line) => [line.x, line.y]));
    const steps = table[0];
    const [first, last] = [steps[0], steps[steps.length - 1]];
    let plot = null;
    let logarithmic = false;
    let fitting = false;
    const tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;

    const probe = document.createElement("span");
    probe.className = "unseen";
    holder.append(probe);
    // custom properties with light-dark() are resolved where they are used
    const resolved = (name) => { probe.setAttribute("class", `unseen probe-${name}`); return getComputedStyle(probe).color; };

    function build() {
      plot?.destroy();
      const [ink, grid] = [resolved("quiet"), resolved("line")];
      const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1, size: 4 }, font: "12px system-ui, sans-serif" };
      const narrow = holder.clientWidth < 520;
      const options = {
        width: Math.max(holder.clientWidth, 200),
        height: narrow ? Math.min(spec.height, 240) : spec.height,
        padding: [10, 22, 0, 0],
        legend: { show: false },
        scales: {
          x: { time: false, range: () => group.range ?? (last > first ? [first, last] : [first - 1, last + 1]) },
          y: logarithmic ? { distr: 3 } : {},
        },
        axes: [
          { ...axis, size: 30, label: spec.xTitle, labelSize: 18, labelFont: axis.font, incrs: INCREMENTS, space: narrow ? 44 : 60 },
          { ...axis, size: 62, values: (_, values) => ticks(values) },
        ],
        cursor: { y: false, drag: { x: true, y: false, setScale: false, dist: 6 }, focus: { prox: 24 }, points: { size: 7 } },
        focus: { alpha: 0.35 },
        series: [
          {},
          ...spec.lines.map((line) => ({
            label: line.name,
            show: group.shows(line),
            stroke: group.color(line.run),
            alpha: line.strong ? 1 : WEAK,
            width: line.strong ? 2.4 : 1.4,
            dash: group.dashed(line.run) ? [6, 4] : undefined,
            spanGaps: true,
            points: { show: line.strong || line.x.length === 1, size: 5, fill: group.color(line.run) },
          })),
        ],
        hooks: {
          setCursor: [showTip],
          setSelect: [
            (self) => {
              if (fitting || self.select.width < 6) return;
              const low = self.posToVal(self.select.left, "x");
              const high = self.posToVal(self.select.left + self.select.width, "x");
              fitting = true;
              self.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
              fitting = false;
              zoom(low, high);
            },
          ],
        },
      };
      plot = new uPlot(options, table, holder);
      plot.over.addEventListener("dblclick", group.showAll);
      plot.over.append(tip);
    }

    // Shows steps from low to high: at least two of them, and no more than there are.
    function zoom(low, high) {
      const least = Math.min((last - first) / Math.max(steps.length - 1, 1), last - first) || 1;
      if (high - low < least) [low, high] = [(low + high - least) / 2, (low + high + least) / 2];
      if (high - low >= last - first) { group.showAll(); return; }
      const shift = Math.max(first - low, 0) || Math.min(last - high, 0);
      group.show(low + shift, high + shift);
    }

    function scaled(factor) {
      const { min, max } = plot.scales.x;
      const at = plot.cursor.left >= 0 ? plot.posToVal(plot.cursor.left, "x") : (min + max) / 2;
      zoom(at - (at - min) * factor, at + (max - at) * factor);
    }

    function showTip(self) {
      const { left, top, idx } = self.cursor;
      if (left < 0 || idx === null || idx === undefined) { tip.hidden = true; return; }
      const rows = spec.lines
        .map((line, index) => ({ line, found: group.shows(line) ? near(index + 1, idx) : null }))
        .filter((row) => row.found !== null)
        .map((row) => ({ ...row, distance: Math.abs(self.valToPos(table[row.found.index][row.found.at], "y") - top) }));
      if (!rows.length) { tip.hidden = true; return; }
      const shown = new Set([...rows].sort((a, b) => a.distance - b.distance).slice(0, NEAREST));
      const heading = document.createElement("div");
      heading.textContent = `step ${steps[idx].toLocaleString("en-US")}`;
      tip.replaceChildren(heading, ...rows.filter((row) => shown.has(row)).map((row) => tipRow(row, steps[idx])));
      tip.hidden = false;
      const right = left > self.over.clientWidth / 2;
      tip.style.left = right ? "auto" : `${left + 14}px`;
      tip.style.right = right ? `${self.over.clientWidth - left + 14}px` : "auto";
      tip.style.top = `${Math.max(0, Math.min(top - 20, self.over.clientHeight - tip.offsetHeight))}px`;
    }

    function tipRow({ line, found }, step) {
      const row = document.createElement("div");
      row.className = group.classes(line.run);
      const swatch = document.createElement("i");
      swatch.className = "swatch";
      const name = document.createElement("span");
      name.className = "name";
      name.textContent = [group.several ? group.name(line.run) : null, line.name].filter(Boolean).join(", ");
      if (steps[found.at] !== step) name.textContent += ` (step ${steps[found.at].toLocaleString("en-US")})`;
      const value = document.createElement("b");
      value.textContent = short(table[found.index][found.at]);
      row.append(swatch, name, value);
      return row;
    }

    // The index of a line's point nearest to a step, if it lies within its own distance of points.
    function near(index, at) {
      const values = table[index];
      for (let away = 0; away < steps.length; away++) {
        for (const place of [at - away, at + away]) {
          if (values[place] !== null && values[place] !== undefined) {
            const line = spec.lines[index - 1];
            const spacing = line.x.length > 1 ? (line.x[line.x.length - 1] - line.x[0]) / (line.x.length - 1) : Infinity;
            return Math.abs(steps[place] - steps[at]) <= spacing ? { index, at: place } : null;
          }
        }
      }
      return null;
    }

    const chart = {
      fit() { plot?.setScale("x", group.range ? { min: group.range[0], max: group.range[1] } : { min: first, max: last }); plot?.redraw(true, true); },
      visibility() {
        if (!plot) return;
        plot.batch(() => spec.lines.forEach((line, index) => plot.setSeries(index + 1, { show: group.shows(line) })));
      },
    };

    holder.addEventListener("keydown", (event) => {
      const moves = { ArrowLeft: -1, ArrowRight: 1 };
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key in moves && event.shiftKey) {
        const { min, max } = plot.scales.x;
        zoom(min + (moves[event.key] * (max - min)) / 4, max + (moves[event.key] * (max - min)) / 4);
      } else if (event.key in moves) {
        const { min, max } = plot.scales.x;
        const from = plot.cursor.left >= 0 ? plot.cursor.idx : steps.findIndex((value) => value >= min) - moves[event.key];
        const to = Math.min(Math.max((from ?? 0) + moves[event.key], 0), steps.length - 1);
        if (steps[to] < min || steps[to] > max) return;
        plot.setCursor({ left: plot.valToPos(steps[to], "x"), top: plot.over.clientHeight / 3 });
      } else if (event.key === "+" || event.key === "=") scaled(0.5);
      else if (event.key === "-") scaled(2);
      else if (event.key === "0") group.showAll();
      else if (event.key === "Escape") plot.setCursor({ left: -10, top: -10 });
      else return;
      event.preventDefault();
    });
    holder.addEventListener("blur", () => plot?.setCursor({ left: -10, top: -10 }));
    for (const button of figure.querySelectorAll("[data-do]")) {
      const what = button.dataset.do;
      if (what === "log") button.addEventListener("change", () => { logarithmic = button.checked; build(); });
      else button.addEventListener("click", () => (what === "in" ? scaled(0.5) : what === "out" ? scaled(2) : group.showAll()));
    }
    let width = 0;
    new ResizeObserver(() => {
      if (holder.clientWidth === width || !holder.clientWidth) return;
      width = holder.clientWidth;
      build();
    }).observe(holder);
    document.addEventListener("themechange", build);
    build();
    return chart;
  }
})();
