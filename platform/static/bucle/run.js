// One run: its curves and its state, drawn from what the page brought and from the news that follow.
(() => {
  const page = document.getElementById("run");
  if (!page) return;
  const data = bucle.data("run-data");
  const one = (selector) => page.querySelector(selector);
  const steps = new Map(); // step -> figures; a resumed run reports a step again, the later report counts
  const format = new Intl.NumberFormat(document.documentElement.lang, { maximumSignificantDigits: 4 });
  const share = new Intl.NumberFormat(document.documentElement.lang, { style: "percent", maximumFractionDigits: 1 });
  const short = new Intl.NumberFormat(document.documentElement.lang, { notation: "compact", maximumSignificantDigits: 3 });
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const known = new Set(data.charts.flatMap((chart) => chart.series.map((s) => s.key)));
  const drawn = new Map(); // title -> {plot, chart, keys, box}

  const remember = (metrics) => {
    metrics.forEach(({ step, ...values }) => steps.set(step, { ...steps.get(step), ...values }));
    const rest = new Set(metrics.flatMap((m) => Object.keys(m)).filter((k) => k !== "step" && k !== "seconds" && !known.has(k)));
    rest.forEach((key) => {
      known.add(key);
      const title = key.replaceAll("_", " ");
      data.charts.push({ title, main: false, series: [{ key, label: title, percent: false }] });
    });
  };

  const columns = (chart) => {
    const keys = chart.series.map((s) => s.key).filter((key) => [...steps.values()].some((v) => typeof v[key] === "number"));
    const xs = [...steps.keys()].filter((x) => keys.some((key) => typeof steps.get(x)[key] === "number")).sort((a, b) => a - b);
    return { keys, rows: [xs, ...keys.map((key) => xs.map((x) => steps.get(x)[key] ?? null))] };
  };

  // Where nobody points at the curves, the legend shows their newest values.
  const newest = (plot, at) => plot.data[at].findLast((value) => value !== null);
  const written = (shown, value) => (value === null || value === undefined ? "–" : shown.format(value));

  const options = (chart, keys, width, rows) => {
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
    const percent = chart.series.every((s) => s.percent);
    const series = keys.map((key, place) => {
      const found = chart.series.find((s) => s.key === key);
      const few = rows[place + 1].filter((v) => v !== null).length < 40;
      const shown = found.percent ? share : format;
      return {
        label: found.label,
        stroke: colour(`--series-${place + 1}`),
        width: 2,
        spanGaps: true,
        points: { show: few, size: 6, fill: colour("--surface") },
        value: (plot, value, at, index) => written(shown, index === null ? newest(plot, at) : value),
      };
    });
    return {
      width,
      height: 250,
      cursor: { drag: { x: true, y: false }, points: { size: 8 } },
      scales: { x: { time: false } },
      axes: [
        { ...axis, values: (_plot, ticks) => ticks.map((t) => (Number.isInteger(t) ? short.format(t) : "")) },
        { ...axis, size: 58, values: (_plot, ticks) => ticks.map((t) => (percent ? share : Math.abs(t) >= 10000 ? short : format).format(t)) },
      ],
      series: [
        { label: page.dataset.step, value: (plot, value, at, index) => written(format, index === null ? newest(plot, at) : value) },
        ...series,
      ],
    };
  };

  const frame = (chart) => {
    const box = document.createElement("section");
    box.className = "panel chart";
    const title = document.createElement("h2");
    title.textContent = chart.title;
    const plot = document.createElement("div");
    plot.className = "plot-room";
    box.append(title, plot);
    one(chart.main ? "[data-charts]" : "[data-charts-more]").append(box);
    if (!chart.main) one(".more-charts").hidden = false;
    return plot;
  };

  const draw = (chart) => {
    const { keys, rows } = columns(chart);
    if (!keys.length) return;
    const old = drawn.get(chart.title);
    if (old && old.keys.join() === keys.join()) return old.plot?.setData(rows);
    const room = old?.room ?? frame(chart);
    old?.plot?.destroy();
    drawn.set(chart.title, { chart, keys, room, plot: null });
    const width = room.clientWidth;
    if (width) drawn.get(chart.title).plot = new uPlot(options(chart, keys, width, rows), rows, room);
    sizes.observe(room);
  };

  const sizes = new ResizeObserver((entries) =>
    entries.forEach(({ target }) => {
      const entry = [...drawn.values()].find((d) => d.room === target);
      if (!entry || !target.clientWidth) return;
      if (entry.plot) return entry.plot.width === target.clientWidth || entry.plot.setSize({ width: target.clientWidth, height: 250 });
      const { keys, rows } = columns(entry.chart); // it was folded away until now
      entry.plot = new uPlot(options(entry.chart, keys, target.clientWidth, rows), rows, target);
    }),
  );

  const drawAll = () => {
    data.charts.forEach(draw);
    one("[data-no-curves]").hidden = drawn.size > 0;
  };
  document.addEventListener("bucle:theme", () => {
    drawn.forEach((entry) => {
      entry.plot?.destroy();
      entry.plot = null;
      entry.keys = [];
    });
    drawAll();
  });

  const text = (selector, value) => {
    const el = one(selector);
    if (el && el.textContent !== value) el.textContent = value;
  };
  const showState = (run) => {
    const pill = one("[data-status]");
    pill.className = `pill status-${run.status}`;
    text("[data-label]", run.label);
    text("[data-progress]", run.progress);
    text("[data-took]", run.took);
    one("[data-meter]").setAttribute("aria-valuenow", run.percent);
    one("[data-meter] span").style.width = `${run.percent}%`;
    one("[data-error]").hidden = !run.error;
    text("[data-error] p", run.error);
    Object.entries(run.figures).forEach(([key, value]) => text(`[data-figure="${key}"]`, value));
  };

  // Parts that the server writes: fetched and put in place without a reload.
  const refresh = (...ids) => htmx.ajax("GET", location.pathname, { target: `#${ids[0]}`, select: `#${ids[0]}`, swap: "outerHTML" }).then(() => ids.length > 1 && refresh(...ids.slice(1)));

  let after = data.after;
  const onNews = (news) => {
    one("[data-connection]").hidden = true;
    if (news.after) after = news.after;
    remember(news.metrics);
    if (news.metrics.length) drawAll();
    showState(news.run);
    one("[data-missing]").hidden = !news.missing.length;
    if (news.samples.length && !news.run.over) refresh("samples");
  };
  const onLost = () => {
    text("[data-connection]", page.dataset.signedOut);
    one("[data-connection]").hidden = false;
  };

  remember(data.metrics);
  drawAll();
  if (!data.over) {
    bucle.follow(page.dataset.events, {
      onNews,
      onLost,
      onEnd: () => refresh("run-actions", "outcome", "samples"),
      after: () => `metric=${after.metric}&sample=${after.sample}`,
    });
  }
})();
