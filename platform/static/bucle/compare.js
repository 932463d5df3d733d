// Reward and win rate over the square root of the KL: a point a policy, best of n as a line.
(() => {
  const lang = document.documentElement.lang;
  const number = new Intl.NumberFormat(lang, { maximumSignificantDigits: 3 });
  const share = new Intl.NumberFormat(lang, { style: "percent", maximumFractionDigits: 1 });
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  let plots = [];

  const rowsOf = (data, key) => {
    const xs = [...new Set(data.series.flatMap((s) => s.points.map((p) => p.kl)))].sort((a, b) => a - b);
    return [xs, ...data.series.map((s) => xs.map((x) => s.points.find((p) => p.kl === x)?.[key] ?? null))];
  };

  const draw = (data, chart, room) => {
    const shown = chart.percent ? share : number;
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
    let policies = 0;
    const series = data.series.map(({ label, kind }) => {
      const stroke = colour(kind === "policy" ? `--series-${(policies++ % 6) + 1}` : kind === "baseline" ? "--muted" : "--ink");
      const line = kind === "baseline" ? { width: 1.5, dash: [6, 4] } : { width: 0 };
      return { label, stroke, ...line, spanGaps: true, points: { show: true, size: kind === "policy" ? 11 : 8, stroke, fill: stroke } };
    });
    const labels = { label: data.across, labelSize: 22, labelFont: "13px sans-serif" };
    const rows = rowsOf(data, chart.key);
    const far = rows[0][rows[0].length - 1] || 1;
    const options = {
      width: room.clientWidth,
      height: 300,
      cursor: { show: false },
      legend: { live: false },
      scales: { x: { time: false, range: [-0.04 * far, 1.06 * far] } },
      axes: [{ ...axis, ...labels, values: (_plot, ticks) => ticks.map((t) => number.format(t)) }, { ...axis, size: 58, values: (_plot, ticks) => ticks.map((t) => shown.format(t)) }],
      series: [{}, ...series],
    };
    plots.push({ plot: new uPlot(options, rows, room), room });
  };

  const drawAll = () => {
    plots.forEach(({ plot }) => plot.destroy());
    plots = [];
    const place = document.querySelector("[data-compare]");
    if (!place) return;
    const data = JSON.parse(document.getElementById("compare-data").textContent);
    place.replaceChildren();
    if (data.series.length < 2) return;
    data.charts.forEach((chart) => {
      const box = document.createElement("section");
      const title = document.createElement("h2");
      const room = document.createElement("div");
      box.className = "panel chart";
      title.textContent = chart.title;
      box.append(title, room);
      place.append(box);
      draw(data, chart, room);
    });
  };

  drawAll();
  document.addEventListener("bucle:theme", drawAll);
  document.addEventListener("htmx:afterSwap", drawAll);
  addEventListener("resize", () => plots.forEach(({ plot, room }) => plot.setSize({ width: room.clientWidth, height: 300 })));
})();
