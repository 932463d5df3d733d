// Ranking: a text's place is a number, kept in its <select> (so the form is the same without scripts); equal numbers tie.
// The texts never move: buttons, keys and the letters on the ladder change the numbers.
(() => {
  const { form, changed } = window.bucle.task;
  const task = window.bucle.task;
  const ladder = document.getElementById("ladder");
  const words = ladder.dataset;
  const said = document.getElementById("said");
  const noneGood = form.elements.none_good;
  const cards = [...document.querySelectorAll(".card-text")].map((el) => ({
    el,
    letter: el.dataset.letter,
    select: el.querySelector(".place-select"),
    keys: el.querySelector(".place-keys"),
    chip: null,
  }));
  const K = cards.length;
  let current = cards[0];

  const placeOf = (card) => Number(card.select.value) || 0;
  const setPlace = (card, n) => (card.select.value = n ? String(n) : "");
  const tiers = (without = null) => {
    const found = [];
    for (let n = 1; n <= K; n += 1) {
      const tier = cards.filter((card) => card !== without && placeOf(card) === n);
      if (tier.length) found.push(tier);
    }
    return found;
  };
  const renumber = (order) => order.forEach((tier, i) => tier.forEach((card) => setPlace(card, i + 1)));
  const fill = (text, values) => text.replace(/\{(\w+)\}/g, (_, name) => values[name]);

  // Drawing
  const trayList = ladder.querySelector(".tray .chips");
  const trayLabel = document.getElementById("tray-label");
  const rungs = [];
  function build() {
    cards.forEach((card) => {
      card.chip = document.createElement("li");
      card.chip.className = "chip";
      card.chip.textContent = card.letter;
      card.chip.addEventListener("click", () => go(card));
      card.keys.classList.toggle("many", K > 6);
      for (let n = 1; n <= K; n += 1) {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = n;
        button.addEventListener("click", () => {
          look(card);
          place(card, placeOf(card) === n ? 0 : n);
        });
        card.keys.append(button);
      }
    });
    const stack = ladder.querySelector(".rungs");
    for (let n = 1; n <= K; n += 1) {
      stack.append(gap(n));
      const rung = document.createElement("div");
      rung.className = "rung";
      const word = n === 1 ? words.best : n === K ? words.worst : "";
      rung.innerHTML = `<span class="rung-number">${n}<span class="rung-word"></span></span><ul class="chips" data-place="${n}"></ul>`;
      rung.querySelector(".rung-word").textContent = word;
      rungs.push(rung);
      stack.append(rung);
    }
    stack.append(gap(K + 1));
    ladder.classList.toggle("many", K > 6);
    ladder.hidden = false;
    form.classList.add("with-keys");
    const all = cards.map((card) => card.el.querySelector(".reading")?.textContent.length || 0);
    document.getElementById("cards").classList.toggle("short", K > 3 && Math.max(...all) < 240);
  }
  function gap(before) {
    const list = document.createElement("ul");
    list.className = "gap";
    list.dataset.before = before;
    return list;
  }

  function draw() {
    cards.forEach((card) => {
      const n = placeOf(card);
      card.el.classList.toggle("placed", n > 0);
      card.el.classList.toggle("current", card === current);
      card.chip.classList.toggle("current", card === current);
      [...card.keys.children].forEach((button, i) => button.setAttribute("aria-pressed", String(i + 1 === n)));
      (n ? rungs[n - 1].querySelector(".chips") : trayList).append(card.chip);
      drawScores(card);
    });
    rungs.forEach((rung) => {
      const n = rung.querySelector(".chips").children.length;
      rung.classList.toggle("filled", n > 0);
      rung.classList.toggle("tied", n > 1);
    });
    trayLabel.textContent = openSentence();
    if (!unplaced().length) trayLabel.classList.remove("missing");
  }
  function drawScores(card) {
    const marks = [...card.el.querySelectorAll(".axis")].map((axis) => axis.querySelector("input:checked")?.value || "–");
    card.el.querySelector(".scores-given").textContent = marks.some((mark) => mark !== "–") ? marks.join(" · ") : "";
  }
  const unplaced = () => cards.filter((card) => !placeOf(card));
  const openSentence = () => {
    const n = unplaced().length;
    return n === 0 ? words.done : n === 1 ? words.openOne : fill(words.openMany, { n });
  };
  function tell(card) {
    const n = placeOf(card);
    const ties = cards.filter((other) => other !== card && n && placeOf(other) === n).map((other) => other.letter);
    const at = fill(n ? words.at : words.off, { letter: card.letter, place: n });
    said.textContent = ties.length ? `${at}, ${fill(words.tied, { letters: ties.join(", ") })}` : at;
  }
  function update(card) {
    draw();
    tell(card);
    changed();
  }

  // Moving
  function look(card) {
    current = card;
    draw();
  }
  function go(card) {
    look(card);
    card.el.focus({ preventScroll: true });
    card.el.scrollIntoView({ block: "nearest" });
  }
  function place(card, n) {
    setPlace(card, n);
    update(card);
  }
  function placeAndGoOn(card, n) {
    const wasOpen = !placeOf(card);
    place(card, n);
    const rest = unplaced();
    const next = rest.find((other) => cards.indexOf(other) > cards.indexOf(card)) || rest[0];
    if (wasOpen && next) go(next);
  }
  function insert(card, before) {
    const order = tiers(card).map((tier) => ({ at: placeOf(tier[0]), tier }));
    const i = order.filter(({ at }) => at < before).length;
    const all = order.map(({ tier }) => tier);
    all.splice(i, 0, [card]);
    renumber(all);
    update(card);
  }
  // Up and down: out of a tie into a place of its own, else past the neighbour.
  function shift(card, step) {
    if (!placeOf(card)) {
      const all = tiers();
      renumber(step < 0 ? [[card], ...all] : [...all, [card]]);
      return update(card);
    }
    const all = tiers();
    const i = all.findIndex((tier) => tier.includes(card));
    if (all[i].length > 1) {
      all[i] = all[i].filter((other) => other !== card);
      all.splice(step < 0 ? i : i + 1, 0, [card]);
    } else {
      const j = i + step;
      if (j < 0 || j >= all.length) return tell(card);
      [all[i], all[j]] = [all[j], all[i]];
    }
    renumber(all);
    return update(card);
  }
  function tie(card) {
    const all = tiers(card);
    const i = placeOf(card) ? all.filter((tier) => placeOf(tier[0]) < placeOf(card)).length - 1 : all.length - 1;
    if (i < 0) {
      said.textContent = fill(words.top, { letter: card.letter });
      return;
    }
    all[i].push(card);
    renumber(all);
    update(card);
  }

  function drag() {
    const settle = (event) => {
      document.body.classList.remove("dragging");
      const card = cards.find((each) => each.chip === event.item);
      const to = event.to.dataset;
      current = card;
      if (to.before) insert(card, Number(to.before));
      else place(card, Number(to.place));
    };
    ladder.querySelectorAll(".chips, .gap").forEach((list) =>
      window.Sortable.create(list, {
        group: "ladder",
        sort: false,
        animation: 0,
        forceFallback: true, // the same behaviour by mouse and by finger
        fallbackOnBody: true,
        fallbackTolerance: 4,
        emptyInsertThreshold: 2,
        onStart: () => document.body.classList.add("dragging"),
        onEnd: settle,
      }),
    );
  }

  // Keys
  const dialog = document.getElementById("keys");
  document.getElementById("show-keys").addEventListener("click", () => dialog.showModal());
  const isTyping = (el) => el.matches("textarea, select, input:not([type=hidden])");
  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || dialog.open || isTyping(event.target)) return;
    const on = current;
    const beside = (step) => go(cards[(cards.indexOf(on) + step + K) % K]);
    const letter = cards.find((card) => card.letter === event.key.toUpperCase());
    const onControl = event.target.closest("button, a, summary");
    const act = {
      ArrowUp: () => shift(on, -1),
      ArrowDown: () => shift(on, 1),
      ArrowLeft: () => beside(-1),
      ArrowRight: () => beside(1),
      "=": () => tie(on),
      "?": () => dialog.showModal(),
      Backspace: () => place(on, 0),
      Delete: () => place(on, 0),
      0: () => noneGood.click(),
      Enter: onControl ? null : () => task.submit(),
    }[event.key];
    if (act) act();
    else if (/^[1-9]$/.test(event.key) && Number(event.key) <= K) placeAndGoOn(on, Number(event.key));
    else if (letter) go(letter);
    else return;
    event.preventDefault();
  }
  document.addEventListener("keydown", key);
  cards.forEach((card) => {
    card.el.addEventListener("focusin", () => card !== current && look(card));
    card.el.addEventListener("pointerdown", () => card !== current && look(card));
    card.el.querySelector(".scores").addEventListener("change", () => drawScores(card));
  });
  noneGood.addEventListener("change", () => {
    said.textContent = noneGood.checked ? words.none : words.some;
  });

  task.isComplete = () => {
    const open = unplaced();
    trayLabel.classList.toggle("missing", open.length > 0);
    if (!open.length) return true;
    said.textContent = openSentence();
    go(open[0]);
    return false;
  };

  build();
  draw();
  drag();
})();
