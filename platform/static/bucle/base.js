// What every page has: theme toggle, menus that close, toasts, times in the reader's zone, the CSRF token for htmx.
(() => {
  const root = document.documentElement;

  document.querySelectorAll("[data-theme-toggle]").forEach((button) => {
    const show = () => button.setAttribute("aria-pressed", String(root.getAttribute("data-bs-theme") === "dark"));
    button.addEventListener("click", () => {
      const next = root.getAttribute("data-bs-theme") === "dark" ? "light" : "dark";
      root.setAttribute("data-bs-theme", next);
      try {
        localStorage.setItem("bucle-theme", next);
      } catch {
        // the choice then lasts for this page only
      }
      show();
      document.dispatchEvent(new CustomEvent("bucle:theme"));
    });
    show();
  });

  const menus = [...document.querySelectorAll("details[data-menu]")];
  document.addEventListener("click", (event) => {
    menus.filter((menu) => menu.open && !menu.contains(event.target)).forEach((menu) => (menu.open = false));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    menus
      .filter((menu) => menu.open)
      .forEach((menu) => {
        menu.open = false;
        menu.querySelector("summary").focus();
      });
  });

  const TOAST_SECONDS = 7;
  const dismissLater = (toast) => {
    if (!toast.hasAttribute("data-passing")) return;
    let timer = setTimeout(() => toast.remove(), TOAST_SECONDS * 1000);
    toast.addEventListener("mouseenter", () => clearTimeout(timer));
    toast.addEventListener("focusin", () => clearTimeout(timer));
    toast.addEventListener("mouseleave", () => (timer = setTimeout(() => toast.remove(), 2000)));
  };
  const tray = document.getElementById("toasts");
  if (tray) {
    tray.addEventListener("click", (event) => {
      if (event.target.closest("[data-dismiss]")) event.target.closest(".bucle-toast").remove();
    });
    tray.querySelectorAll(".bucle-toast").forEach(dismissLater);
  }

  // <time data-clock>: hours and minutes where the reader is; without scripts the server's zone stays.
  const clock = new Intl.DateTimeFormat(root.lang, { hour: "2-digit", minute: "2-digit" });
  const day = new Intl.DateTimeFormat(root.lang, { dateStyle: "medium", timeStyle: "short" });
  const localTimes = (inside) => {
    inside.querySelectorAll("time[data-clock], time[data-day]").forEach((el) => {
      const when = new Date(el.dateTime);
      if (!Number.isNaN(when.getTime())) el.textContent = (el.hasAttribute("data-day") ? day : clock).format(when);
    });
  };
  localTimes(document);

  // The cookie first: signing in again in another tab has changed the token of this page.
  const csrf = () =>
    document.cookie.match(/(?:^|; )csrftoken=([^;]+)/)?.[1] || document.querySelector('meta[name="csrf"]').content;
  document.addEventListener("submit", (event) => {
    const hidden = event.target.querySelector("input[name=csrfmiddlewaretoken]");
    if (hidden) hidden.value = csrf();
  });
  // A second click while the first is on its way sends nothing; forms that scripts send look after themselves.
  const ON_ITS_WAY = 8000;
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (event.defaultPrevented || form.method !== "post") return;
    if (Date.now() - (form.dataset.sentAt || 0) < ON_ITS_WAY) event.preventDefault();
    else form.dataset.sentAt = Date.now();
  });
  window.addEventListener("pageshow", () =>
    document.querySelectorAll("form[data-sent-at]").forEach((form) => delete form.dataset.sentAt),
  );
  document.addEventListener("htmx:configRequest", (event) => (event.detail.headers["X-CSRFToken"] = csrf()));
  document.addEventListener("htmx:afterSwap", (event) => localTimes(event.target));

  // Shared with the other scripts of our own.
  window.bucle = {
    csrf,
    localTimes,
    post: (url, body, options = {}) =>
      fetch(url, {
        method: "POST",
        credentials: "same-origin",
        headers: { "X-CSRFToken": csrf(), "Content-Type": "application/json", Accept: "application/json" },
        body: JSON.stringify(body ?? {}),
        ...options,
      }),
    data: (id) => JSON.parse(document.getElementById(id)?.textContent || "null"),
  };
})();
