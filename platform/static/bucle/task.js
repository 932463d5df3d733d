// A task in hand, for writing and for ranking: the draft goes to the server at every change, the lease is renewed
// while somebody is at the page, and the form is sent so that a lost connection loses nothing.
(() => {
  const form = document.getElementById("task-form");
  const data = window.bucle.data("task-data");
  const status = document.getElementById("draft-status");
  const lease = document.getElementById("lease");
  const SAVE_AFTER = 600; // ms without a change
  const TRY_AGAIN = 5000;
  const IDLE = 5 * 60_000; // after this nobody is at the page and the lease is left to run out
  const BEAT = 60_000;

  const seconds = form.elements.seconds;
  const before = Number(seconds?.value || 0);
  let workedMs = 0;
  let lastTick = Date.now();
  const countTime = () => {
    const now = Date.now();
    if (!document.hidden && now - active < IDLE) workedMs += Math.min(now - lastTick, 30_000);
    lastTick = now;
    if (seconds) seconds.value = before + Math.round(workedMs / 1000);
  };

  // Draft
  let dirty = false;
  let sending = false;
  let timer = 0;
  let saving = null;
  const say = (text, trouble = false) => {
    status.textContent = text;
    status.classList.toggle("field-error", trouble);
  };
  function send(url, options = {}) {
    const body = new FormData(form);
    body.delete("csrfmiddlewaretoken"); // it would win over the header, and it is old after signing in again
    const headers = { Accept: "application/json", "X-CSRFToken": window.bucle.csrf() };
    return fetch(url, { method: "POST", credentials: "same-origin", headers, body, ...options });
  }
  // A redirect leads to the sign-in page, which answers in JSON too when asked for it.
  const isAnswer = (response) =>
    !response.redirected && (response.headers.get("Content-Type") || "").startsWith("application/json");

  // Taken out of the project while at work.
  const isGone = (answer) => answer.status === 403 || answer.status === 404;

  async function save() {
    clearTimeout(timer);
    if (!dirty || sending || saving) return;
    countTime();
    dirty = false;
    saving = new AbortController();
    say(status.dataset.saving);
    try {
      const response = await send(data.draft, { signal: saving.signal });
      if (!response.ok || !isAnswer(response)) throw response;
      if (!dirty) say(status.dataset.saved);
    } catch (trouble) {
      dirty = true;
      if (sending) return;
      say(isGone(trouble) ? status.dataset.gone : trouble.redirected ? status.dataset.out : status.dataset.failed, true);
      timer = setTimeout(save, TRY_AGAIN);
      return;
    } finally {
      saving = null;
    }
    if (dirty) timer = setTimeout(save, SAVE_AFTER);
  }

  function changed() {
    dirty = true;
    clearTimeout(timer);
    timer = setTimeout(save, SAVE_AFTER);
  }

  form.addEventListener("input", changed);
  document.addEventListener("visibilitychange", () => {
    countTime();
    if (document.hidden && dirty && !sending) send(data.draft, { keepalive: true }).then((r) => (dirty = !r.ok), () => {});
  });
  window.addEventListener("beforeunload", (event) => {
    if (dirty && !sending) {
      send(data.draft, { keepalive: true }).catch(() => {});
      if (status.classList.contains("field-error")) event.preventDefault(); // the server has not got it: ask
    }
  });

  // Lease
  let active = Date.now();
  let until = data.until ? new Date(data.until) : null;
  let held = data.held;
  let beating = false;
  const over = document.getElementById("lease-over");
  const passedOn = document.getElementById("passed-on");
  const left = document.getElementById("lease-left");

  async function renew() {
    if (beating || sending || !held) return;
    beating = true;
    try {
      const response = await window.bucle.post(data.renew);
      if (!response.ok || !isAnswer(response)) return;
      const answer = await response.json();
      held = answer.until !== null;
      until = held ? new Date(answer.until) : until;
      passedOn.hidden = held;
      const clock = lease.querySelector("time");
      clock.dateTime = until.toISOString();
      window.bucle.localTimes(lease);
    } catch {
      // no connection: the draft's line says so, and the next beat tries again
    } finally {
      beating = false;
      show();
    }
  }

  function show() {
    if (!until) return;
    const ms = until - Date.now();
    const isOver = ms <= 0;
    over.hidden = !isOver || !held;
    lease.hidden = isOver || !held;
    left.textContent =
      ms >= 90_000 ? `(${Math.round(ms / 60_000)} ${left.dataset.minutes})` : `(${Math.max(0, Math.ceil(ms / 1000))} ${left.dataset.seconds})`;
    left.classList.toggle("lease-short", ms < 90_000);
  }

  if (until) {
    const beat = Math.max(1000, Math.min(BEAT, (until - Date.now()) / 3));
    let lastBeat = Date.now();
    setInterval(() => {
      countTime();
      if (Date.now() - lastBeat >= beat && Date.now() - active < IDLE) {
        lastBeat = Date.now();
        renew();
      }
      show();
    }, 1000);
    show();
  }
  ["pointerdown", "pointermove", "keydown", "scroll", "touchstart"].forEach((name) =>
    document.addEventListener(
      name,
      () => {
        active = Date.now();
        if (until && held && until < Date.now()) renew();
      },
      { passive: true },
    ),
  );

  // Sending
  const errors = document.getElementById("form-errors");
  const button = document.getElementById("send");
  const label = button?.textContent;

  function complain(sentences) {
    const box = errors.querySelector("[data-sentences]");
    box.replaceChildren(
      ...sentences.map((sentence) => {
        const p = document.createElement("p");
        p.textContent = sentence;
        return p;
      }),
    );
    errors.hidden = false;
    errors.scrollIntoView({ block: "center" });
  }

  function busy(yes) {
    sending = yes;
    button.disabled = yes;
    button.textContent = yes ? button.dataset.sending : label;
  }

  form.addEventListener("submit", async (event) => {
    if (sending) return event.preventDefault();
    if (event.submitter?.hasAttribute("data-plain")) {
      sending = true; // skipping posts the form as it is, draft included
      return undefined;
    }
    event.preventDefault();
    if (!api.isComplete()) return undefined;
    countTime();
    busy(true);
    errors.hidden = true;
    clearTimeout(timer);
    saving?.abort(); // a draft that arrives after its own form is refused by the server as well
    try {
      const response = await send(form.action);
      if (isAnswer(response)) {
        const answer = await response.json();
        if (answer.next) {
          dirty = false;
          window.location.assign(answer.next);
          return undefined;
        }
        complain(answer.errors);
      } else complain([errors.dataset[response.redirected ? "out" : isGone(response) ? "gone" : "broken"]]);
    } catch {
      complain([errors.dataset.offline]);
    }
    busy(false);
    changed(); // what was not sent is at least saved
    return undefined;
  });
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) window.location.reload(); // back after sending: show what is stored, not what was
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && button && !document.querySelector("dialog[open]")) {
      event.preventDefault();
      form.requestSubmit(button);
    }
  });

  const api = { form, changed, submit: () => button && form.requestSubmit(button), isComplete: () => true };
  window.bucle.task = api;
})();
