"use strict";
// The mixture explorer: sliders over shares, predicted by law.js.
(() => {
  const model = JSON.parse(document.getElementById("explorer-data").textContent);
  const form = document.getElementById("explorer");
  // in the model's order, which is not that of the page
  const rows = model.sources.map((_, k) => form.querySelector(`li[data-source="${k}"]`)).map((row) => ({
    slider: row.querySelector("[type=range]"),
    typed: row.querySelector("[type=number]"),
    held: row.querySelector("[type=checkbox]"),
    note: row.querySelector(".note"),
  }));
  const recommended = predictedLosses(model, model.presets.recommended);
  const control = model.domains.map((domain) => domain.control);
  let shares = model.presets.recommended.slice();

  const signed = (nats) => `${nats < 0 ? "−" : "+"}${Math.abs(nats).toFixed(4)}`;
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  const words = (name) => name.replaceAll("_", " ");

  // One share moves; the free others keep their proportions and fill the rest.
  function move(k, wanted) {
    const others = shares.map((_, j) => j).filter((j) => j !== k && !rows[j].held.checked);
    const held = shares.reduce((total, share, j) => total + (j !== k && rows[j].held.checked ? share : 0), 0);
    const room = Math.max(1 - held, 0);
    const share = others.length ? Math.min(Math.max(wanted, 0), room) : room;
    const before = others.reduce((total, j) => total + shares[j], 0);
    others.forEach((j) => {
      shares[j] = before > 1e-12 ? (shares[j] * (room - share)) / before : (room - share) / others.length;
    });
    shares[k] = share;
  }

  function shareNote(source, share) {
    const found = [];
    if (share > source.cap + 1e-9) found.push(`over its cap of ${percent(source.cap)}`);
    if (share < source.lower - 1e-9) found.push(`below its lower bound of ${percent(source.lower)}`);
    if (share > source.seen[1] + 1e-6 || share < source.seen[0] - 1e-6) {
      found.push(`beyond the evidence: the runs span ${percent(source.seen[0])} to ${percent(source.seen[1])}`);
    }
    const epochs = (share * model.decay_tokens) / source.available_tokens;
    if (epochs > 1.05) found.push(`${epochs.toFixed(1)} epochs`);
    return found.join("; ");
  }

  // A guard needs room for the margin that held-out runs asked for.
  function guardState(domain, loss) {
    if (!domain.guard) return null;
    const left = domain.guard.limit - (loss - domain.control);
    if (left < -1e-9) return { word: `broken by ${(-left).toFixed(4)}`, holds: false };
    if (left < domain.guard.margin - 1e-9) return { word: `${left.toFixed(4)} left, inside its margin`, holds: false };
    return { word: `holds, ${left.toFixed(4)} left`, holds: true };
  }

  function showRow(key, loss, against, guard) {
    const cells = form.querySelector(`[data-domain="${key}"]`).cells;
    cells[2].textContent = loss.toFixed(4);
    cells[3].textContent = signed(loss - against.recommended);
    cells[4].textContent = signed(loss - against.control);
    cells[5].textContent = guard ? guard.word : "";
    cells[5].className = guard ? (guard.holds ? "good" : "bad") : "";
  }

  function verdict(losses, guards) {
    const sentences = [];
    const outside = model.sources.filter((source, k) => shares[k] > source.cap + 1e-9 || shares[k] < source.lower - 1e-9);
    const strayed = strayedGroups(model, shares);
    const broken = model.domains.filter((domain, d) => guards[d] && !guards[d].holds);
    if (outside.length) sentences.push(["bad", `Not feasible: ${outside.map((s) => words(s.name)).join(", ")} out of bounds.`]);
    if (strayed.length) {
      sentences.push(["bad", `Not feasible: group ${strayed.map(words).join(", ")} out of its bounds or fixed proportions.`]);
    }
    if (broken.length) sentences.push(["bad", `Guards not safe: ${broken.map((d) => words(d.name)).join(", ")}.`]);
    if (!outside.length && !strayed.length && !broken.length) sentences.push(["good", "Feasible: caps and guards hold by the law."]);
    const change = objective(model, losses) - objective(model, recommended);
    const apart = Math.abs(change) > model.least_gap ? "" : ", which two single runs would not tell apart";
    const against = Math.abs(change) < 5e-5
      ? "that of the recommendation"
      : `${Math.abs(change).toFixed(4)} nats ${change > 0 ? "worse" : "better"} than the recommendation${apart}`;
    sentences.push(["", `The objective is ${against}.`]);
    const away = distanceToRuns(model, shares);
    const far = away > model.run_spacing;
    sentences.push([far ? "bad" : "", `The nearest mixture that was run is ${away.toFixed(2)} away (total variation); `
      + `runs are at most ${model.run_spacing.toFixed(2)} from their nearest neighbour. ${far ? "This is beyond the evidence." : ""}`]);
    return sentences;
  }

  function show() {
    const losses = predictedLosses(model, shares);
    const guards = model.domains.map((domain, d) => guardState(domain, losses[d]));
    rows.forEach((row, k) => {
      row.slider.value = 100 * shares[k];
      row.slider.setAttribute("aria-valuetext", percent(shares[k]));
      if (row.typed !== document.activeElement) row.typed.value = (100 * shares[k]).toFixed(1);
      row.note.textContent = shareNote(model.sources[k], shares[k]);
      row.note.classList.toggle("bad", /cap|bound|beyond/.test(row.note.textContent));
    });
    const value = (all) => objective(model, all);
    showRow("objective", value(losses), { recommended: value(recommended), control: value(control) }, null);
    losses.forEach((loss, d) => showRow(d, loss, { recommended: recommended[d], control: control[d] }, guards[d]));
    document.getElementById("explorer-verdict").replaceChildren(...verdict(losses, guards).map(([kind, text]) => {
      const line = document.createElement("p");
      line.className = kind;
      line.textContent = text;
      return line;
    }));
    const listed = model.sources.map((source, k) => `${source.name}: ${+shares[k].toFixed(4)}`);
    document.getElementById("explorer-yaml").textContent = `{${listed.join(", ")}}`;
  }

  rows.forEach((row, k) => {
    row.slider.addEventListener("input", () => { move(k, row.slider.value / 100); show(); });
    row.typed.addEventListener("input", () => {
      if (row.typed.value === "" || !row.typed.checkValidity() && !row.typed.validity.stepMismatch) return;
      move(k, row.typed.value / 100);
      show();
    });
    row.typed.addEventListener("blur", () => { show(); });
  });
  form.querySelectorAll("[data-preset]").forEach((button) => button.addEventListener("click", () => {
    shares = model.presets[button.dataset.preset].slice();
    show();
  }));
  form.addEventListener("submit", (event) => event.preventDefault());

  document.getElementById("wish-go").addEventListener("click", () => {
    const choice = document.getElementById("wish-domain").value;
    const nats = Number(document.getElementById("wish-nats").value);
    const answer = document.getElementById("wish-answer");
    if (!(nats > 0)) { answer.textContent = "Wish for more than 0 nats."; return; }
    const found = smallestStep(model, nearestFeasible(model, shares), choice === "objective" ? null : Number(choice), nats);
    if (!found) { answer.textContent = "No mixture within bounds and caps brings as much by the law."; return; }
    const moved = 0.5 * found.reduce((total, share, k) => total + Math.abs(share - shares[k]), 0);
    shares = found;
    answer.textContent = `Moved ${percent(moved)} of the tokens; what it does to the other domains and guards stands above.`;
    show();
  });

  const difference = largestDifference(model);
  document.getElementById("explorer-check").textContent = `Checked when this page opened: the losses of ${model.checks.length} `
    + `mixtures equal the library's to a relative ${difference.toExponential(1)}${difference < 1e-9 ? "." : ": DO NOT TRUST THIS EXPLORER."}`;
  form.dataset.largestDifference = difference;
  show();
})();
