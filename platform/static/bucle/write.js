// Writing: counts characters.
(() => {
  const { form } = window.bucle.task;
  const area = form.elements.response;
  const count = document.getElementById("count");
  const most = area.maxLength > 0 ? area.maxLength : 0;
  area.removeAttribute("maxlength"); // cutting a pasted text off in silence would lose it; the server says what to do
  const number = new Intl.NumberFormat(document.documentElement.lang);
  const show = () => {
    const n = [...area.value].length;
    const word = n === 1 ? count.dataset.one : count.dataset.many;
    const limit = most && n > 0.8 * most ? ` ${count.dataset.left} ${number.format(most)}` : "";
    count.textContent = `${number.format(n)} ${word}${limit}`;
    count.classList.toggle("too-long", most > 0 && n > most);
  };
  area.addEventListener("input", show);
  show();
  area.focus({ preventScroll: true });
  area.setSelectionRange(area.value.length, area.value.length);
})();
