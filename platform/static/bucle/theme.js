// Runs before the first paint: the remembered theme, else the system's, and a mark that scripts work.
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const remembered = () => {
    try {
      return localStorage.getItem("bucle-theme");
    } catch {
      return null; // storage may be forbidden: the system's theme then
    }
  };
  const apply = () => root.setAttribute("data-bs-theme", remembered() || (system.matches ? "dark" : "light"));
  root.classList.add("js");
  system.addEventListener("change", apply);
  apply();
})();
