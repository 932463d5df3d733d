// The import form shows what belongs to the chosen kind, and says that it is at work.
(() => {
  const form = document.querySelector("form.import");
  if (!form) return;
  const kind = form.elements.kind;
  const show = () =>
    form.querySelectorAll("[data-only]").forEach((part) => (part.hidden = !part.dataset.only.split(" ").includes(kind.value)));
  kind.addEventListener("change", show);
  show();
  form.addEventListener("submit", () => {
    const button = form.querySelector("[data-busy]");
    button.textContent = button.dataset.busy;
    setTimeout(() => (button.disabled = true));
  });
  window.addEventListener("pageshow", (event) => event.persisted && location.reload());
})();
