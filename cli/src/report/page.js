// Shows the values at the step (or what the axis measures) under the pointer. Everything is on the page without it, too.
for (const figure of document.querySelectorAll("figure.chart")) {
  const plot = figure.querySelector(".plot");
  const data = JSON.parse(figure.querySelector("script").textContent);
  const part = (name, inside) => inside.appendChild(Object.assign(document.createElement("div"), { className: name, hidden: true }));
  const cursor = part("cursor", plot), tip = part("tip", plot);
  const nearest = (list, x) => {
    let low = 0, high = list.length - 1;
    while (high - low > 1) { const middle = (low + high) >> 1; if (list[middle] < x) low = middle; else high = middle; }
    return Math.abs(list[low] - x) <= Math.abs(list[high] - x) ? low : high;
  };
  const number = (y) => y === null ? "not finite" : Math.abs(y) >= 1000 ? y.toLocaleString("en") : String(y);
  const row = (series, at) => {
    const line = document.createElement("div"), key = document.createElement("i");
    key.className = "key ink";
    key.style.setProperty("--l", series.light);
    key.style.setProperty("--d", series.dark);
    const text = (textContent) => Object.assign(document.createElement("span"), { textContent });
    line.append(key, text(series.name), text(number(series.y[at])));
    return line;
  };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const wanted = data.x[0] + share * (data.x[1] - data.x[0]);
    const shown = data.series.filter((series) => series.x.length);
    if (!shown.length) return;
    const step = shown.map((series) => series.x[nearest(series.x, wanted)]).reduce((a, b) => Math.abs(a - wanted) <= Math.abs(b - wanted) ? a : b);
    const left = 100 * (step - data.x[0]) / (data.x[1] - data.x[0]);
    const place = data.across ? data.across + " " + Number(step.toPrecision(4)) : "step " + Math.round(step).toLocaleString("en");
    const head = Object.assign(document.createElement("b"), { textContent: place });
    const there = shown.filter((series) => !data.across || series.x.includes(step));
    const rows = there.map((series) => row(series, nearest(series.x, step)));
    tip.replaceChildren(head, ...(data.stacked ? rows.reverse() : rows));
    cursor.hidden = tip.hidden = false;
    cursor.style.left = left + "%";
    tip.style.left = left < 55 ? `calc(${left}% + 12px)` : "auto";
    tip.style.right = left < 55 ? "auto" : `calc(${100 - left}% + 12px)`;
  });
  plot.addEventListener("pointerleave", () => { cursor.hidden = tip.hidden = true; });
}
