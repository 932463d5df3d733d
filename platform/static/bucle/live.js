// News from the server: an event stream, and where that breaks, questions every few seconds. Never a reload.
(() => {
  const PATIENCE = 3; // broken streams in a row before asking instead
  const EVERY = 3000;

  // follow(url, {onNews, onEnd, onLost, after}): `after()` gives the query that says how far the reader is.
  const follow = (url, { onNews, onEnd = () => {}, onLost = () => {}, after = () => "" }) => {
    let failures = 0;
    let source = null;
    let over = false;

    const end = () => {
      over = true;
      source?.close();
      onEnd();
    };
    const ask = async () => {
      if (over) return;
      try {
        const answer = await fetch(`${url}?poll=1&${after()}`, { headers: { Accept: "application/json" } });
        if (answer.status === 401 || answer.status === 403 || answer.status === 404) return onLost();
        const news = await answer.json();
        onNews(news);
        if (news.run?.over || news.done) return end();
      } catch {
        onLost(true);
      }
      setTimeout(ask, EVERY);
    };
    const listen = () => {
      source = new EventSource(`${url}?${after()}`);
      source.addEventListener("message", (event) => {
        failures = 0;
        onNews(JSON.parse(event.data));
      });
      source.addEventListener("end", end);
      source.addEventListener("error", () => {
        failures += 1;
        if (over || (failures < PATIENCE && source.readyState !== EventSource.CLOSED)) return;
        source.close();
        ask();
      });
    };
    window.EventSource ? listen() : ask();
    window.addEventListener("pagehide", () => source?.close());
    return { stop: end };
  };

  window.bucle.follow = follow;
})();
