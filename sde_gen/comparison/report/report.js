// Particles on their way from noise to data. Positions are 16-bit integers in base64, frame by frame.
(function () {
  "use strict";
  var holder = document.getElementById("trajectories");
  if (!holder) return;
  var data = JSON.parse(holder.textContent);
  var slider = document.getElementById("time"), sampler = document.getElementById("sampler");
  var play = document.getElementById("play"), root = document.getElementById("player");
  var canvases = Array.prototype.slice.call(root.querySelectorAll("canvas"));
  var timer = null;

  function decode(text) {
    var bytes = atob(text), n = bytes.length / 2, out = new Float32Array(n);
    for (var i = 0; i < n; i++) {
      var v = bytes.charCodeAt(2 * i) | (bytes.charCodeAt(2 * i + 1) << 8);
      out[i] = (v > 32767 ? v - 65536 : v) / data.scale;
    }
    return out;
  }
  var runs = data.runs.map(function (row) {
    return row.map(function (run) { return run && { xy: decode(run.xy), t: run.t, lam: run.lam }; });
  });
  var real = decode(data.real);

  function draw(canvas) {
    var run = runs[+canvas.dataset.formulation][+sampler.value];
    var ratio = window.devicePixelRatio || 1, side = canvas.clientWidth || 320;
    canvas.width = canvas.height = Math.round(side * ratio);
    var g = canvas.getContext("2d"), half = data.half, unit = canvas.width / (2 * half);
    var style = getComputedStyle(document.documentElement);
    var dots = style.getPropertyValue("--dots"), ink = style.getPropertyValue("--soft");
    var where = canvas.parentNode.querySelector(".where");
    function x(v) { return (v + half) * unit; }
    function y(v) { return (half - v) * unit; }
    g.clearRect(0, 0, canvas.width, canvas.height);
    g.globalAlpha = 0.35; g.fillStyle = ink;
    for (var r = 0; r < real.length; r += 2) g.fillRect(x(real[r]), y(real[r + 1]), ratio, ratio);
    g.globalAlpha = 1;
    if (!run) { where.textContent = "not run"; return; }
    var frames = run.t.length, count = data.count, at = slider.value / slider.max * (frames - 1);
    var k = Math.min(Math.floor(at), frames - 2), w = at - k;
    function point(frame, i, axis) { return run.xy[(frame * count + i) * 2 + axis]; }
    g.lineWidth = ratio; g.strokeStyle = "rgba(" + dots + ",0.22)";
    g.beginPath();
    for (var i = 0; i < count; i++) {
      var first = Math.max(0, k - 5);
      g.moveTo(x(point(first, i, 0)), y(point(first, i, 1)));
      for (var f = first + 1; f <= k; f++) g.lineTo(x(point(f, i, 0)), y(point(f, i, 1)));
      g.lineTo(x(mix(i, 0)), y(mix(i, 1)));
    }
    g.stroke();
    g.fillStyle = "rgb(" + dots + ")";
    for (i = 0; i < count; i++) {
      g.beginPath(); g.arc(x(mix(i, 0)), y(mix(i, 1)), 2.2 * ratio, 0, 7); g.fill();
    }
    function mix(i, axis) { return (1 - w) * point(k, i, axis) + w * point(k + 1, i, axis); }
    var n = Math.round(at), lam = run.lam[n];
    where.textContent = n === frames - 1 && run.t[n] === 0 ? "t = 0: denoised"
      : "t = " + run.t[n].toFixed(3) + ", half log-SNR " + (lam === null ? "\u221e" : lam.toFixed(2));
  }
  function all() {
    canvases.forEach(draw);
    var share = slider.value / slider.max;
    slider.setAttribute("aria-valuetext", share === 0 ? "noise" : share === 1 ? "data" : Math.round(100 * share) + " percent");
    root.dataset.drawn = slider.value;
  }
  function stop() { clearInterval(timer); timer = null; play.textContent = "Play"; play.setAttribute("aria-pressed", "false"); }
  play.addEventListener("click", function () {
    if (timer) { stop(); return; }
    if (+slider.value >= +slider.max) slider.value = 0;
    play.textContent = "Pause"; play.setAttribute("aria-pressed", "true");
    timer = setInterval(function () {
      slider.value = Math.min(+slider.max, +slider.value + 8);
      all();
      if (+slider.value >= +slider.max) stop();
    }, 30);
  });
  slider.addEventListener("input", all);
  sampler.addEventListener("change", all);
  window.addEventListener("resize", all);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
  window.addEventListener("beforeprint", function () { stop(); slider.value = slider.max; all(); });
  all();
})();
