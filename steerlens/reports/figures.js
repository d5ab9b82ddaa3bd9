"use strict";
// Draw a figure when it comes near the window: fifty at once would hold the page for seconds.
// The figures' own scripts call Plotly.newPlot; it is replaced here, before any of them runs.
(() => {
  const draw = Plotly.newPlot;
  const waiting = new Map();
  const drawNow = (place) => {
    const figure = waiting.get(place);
    if (!figure) return;
    waiting.delete(place);
    observer.unobserve(place);
    draw(place, ...figure);
  };
  const observer = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => drawNow(entry.target)),
    { rootMargin: "800px" },
  );
  Plotly.newPlot = (id, ...figure) => {
    const place = document.getElementById(id);
    waiting.set(place, figure);
    observer.observe(place);
  };
  addEventListener("beforeprint", () => [...waiting.keys()].forEach(drawNow));
})();
