"use strict";
// The decay law at one plan, in float64: the formula of decaylaws/laws/decay/form.py. No document here, so that
// it can be run beside the library.

// What repeating the sources costs a domain: a power of how far log passes exceed their onset.
function harmOfRepeats(model, shares, domain) {
  return model.sources.reduce((total, source, k) => {
    const epochs = (shares[k] * model.decay_tokens) / source.available_tokens;
    const excess = epochs > 0 ? Math.max(Math.log(epochs / model.form.onsets[source.law_index]), 0) : 0;
    return total + model.form.harm[domain][source.law_index] * excess ** model.form.power;
  }, 0);
}

// Shares (in the order of the sliders) as the law sees them: repeats count less, law order.
function effectiveShares(model, shares) {
  const seen = new Array(model.law_sources.length).fill(0);
  model.sources.forEach((source, k) => {
    const epochs = (shares[k] * model.decay_tokens) / source.available_tokens;
    const repeats = Math.max(epochs - 1, 0);
    const worth = Math.min(epochs, 1) - model.form.repeat_scale * Math.expm1(-repeats / model.form.repeat_scale);
    seen[source.law_index] = epochs > 0 ? (shares[k] * worth) / epochs : shares[k];
  });
  return seen;
}

// Predicted loss of every domain, nats per token.
function predictedLosses(model, shares) {
  const form = model.form;
  const powers = effectiveShares(model, shares).map((share) => share ** form.concavity);
  return form.base.map((base, d) => {
    const weighted = powers.map((power, j) =>
      form.coefficients[d][j] * (form.trunk[j] + form.reach[d] * (power - form.trunk[j]) + form.floor));
    const value = weighted.reduce((total, term) => total + term, 0) ** -form.exponents[d];
    const ratio = Math.max(value, 1e-12) / Math.max(form.here[d], 1e-12);
    return base + form.weight[d] * (value - form.here[d]) - form.gain[d] * ratio ** form.follows
      + harmOfRepeats(model, shares, d);
  });
}

function objective(model, losses) {
  return losses.reduce((total, loss, d) => total + model.domains[d].weight * loss, 0);
}

// Names of the groups whose total is out of bounds, or whose fixed proportions are not kept (to half a slider's step).
function strayedGroups(model, shares) {
  return model.groups.filter((group) => {
    const total = group.members.reduce((sum, k) => sum + shares[k], 0);
    const off = group.members.map((k, j) => (group.fixed ? Math.abs(shares[k] - group.fixed[j] * total) : 0));
    return total < group.lower - 1e-6 || total > group.upper + 1e-6 || Math.max(...off) > 5e-4;
  }).map((group) => group.name);
}

// Largest relative difference from the library's own losses at the mixtures that the file carries.
function largestDifference(model) {
  let largest = 0;
  for (const check of model.checks) {
    const found = predictedLosses(model, check.shares);
    check.losses.forEach((loss, d) => { largest = Math.max(largest, Math.abs(found[d] / loss - 1)); });
  }
  return largest;
}

// Nearest shares within the bounds that sum to one (bisection on the shift that all shares take).
function nearestFeasible(model, wanted) {
  const clipped = (shift) => wanted.map((share, k) =>
    Math.min(Math.max(share - shift, model.sources[k].lower), model.sources[k].cap));
  let low = Math.min(...wanted) - 1, high = Math.max(...wanted);
  for (let round = 0; round < 100; round += 1) {
    const middle = (low + high) / 2;
    if (clipped(middle).reduce((a, b) => a + b, 0) > 1) low = middle; else high = middle;
  }
  return clipped((low + high) / 2);
}

// Slopes of one loss or of the objective (domain null) by every share.
function slopes(model, shares, domain) {
  const measure = (at) => {
    const losses = predictedLosses(model, at);
    return domain === null ? objective(model, losses) : losses[domain];
  };
  const step = 1e-6, here = measure(shares);
  return shares.map((share, k) => {
    const moved = shares.slice();
    moved[k] = share + step;
    return (measure(moved) - here) / step;
  });
}

// The smallest change of the shares (Euclidean) that lowers a loss by `nats`, inside the bounds; null if none does.
// For a linear loss the answer is the projection of shares - t * slopes; t is found on the loss itself, and the slopes
// are taken anew at the answer until it rests.
function smallestStep(model, start, domain, nats) {
  const measure = (at) => {
    const losses = predictedLosses(model, at);
    return domain === null ? objective(model, losses) : losses[domain];
  };
  const goal = measure(start) - nats;
  let answer = start;
  for (let round = 0; round < 4; round += 1) {
    const slope = slopes(model, answer, domain);
    const along = (t) => nearestFeasible(model, start.map((share, k) => share - t * slope[k]));
    let low = 0, high = 1e-3;
    while (measure(along(high)) > goal && high < 1e3) high *= 2;
    if (measure(along(high)) > goal) return null;
    for (let halving = 0; halving < 50; halving += 1) {
      const middle = (low + high) / 2;
      if (measure(along(middle)) > goal) low = middle; else high = middle;
    }
    answer = along(high);
  }
  return answer;
}

// Half the sum of absolute differences to the nearest mixture that was run.
function distanceToRuns(model, shares) {
  return Math.min(...model.runs.map((run) =>
    0.5 * run.reduce((total, share, k) => total + Math.abs(share - shares[k]), 0)));
}

if (typeof module !== "undefined") {
  module.exports = { predictedLosses, objective, largestDifference, nearestFeasible, smallestStep, distanceToRuns };
}
