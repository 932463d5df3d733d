// Streams the answers in as they are written.
(() => {
  const open = (article) => {
    if (article.dataset.open) return;
    article.dataset.open = "1";
    const one = (selector) => article.querySelector(selector);
    const note = (text) => (one("[data-note]").textContent = text);
    const fail = (text) => {
      one("[data-error]").textContent = text;
      one("[data-error]").hidden = false;
    };
    bucle.follow(article.dataset.events, {
      onNews: (news) => {
        if (news.error) fail(news.error);
        if (news.text !== undefined) {
          one("[data-text]").textContent = news.text;
          note("");
        }
        if (news.missing) one("[data-missing]").hidden = !news.missing.length;
        if (news.done) {
          one("[data-text]").setAttribute("aria-busy", "false");
          one("[data-missing]").hidden = true;
          note({ eos: article.dataset.eos, length: article.dataset.length }[news.finish_reason] ?? "");
        }
      },
      onEnd: () => one("[data-text]").setAttribute("aria-busy", "false"),
      onLost: () => fail(article.dataset.lost),
    });
  };
  const openAll = () => document.querySelectorAll(".answer[data-events]").forEach(open);
  document.addEventListener("htmx:afterSwap", openAll);
  openAll();

  const prompt = document.querySelector("textarea[name=prompt]");
  prompt?.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      prompt.form.requestSubmit();
    }
  });
})();
