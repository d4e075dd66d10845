// Plays the scenes of a page on canvases. Every figure brings its own copy: the first one runs.
// The drawing is that of image.py; sizes are in radii of an object.
(function () {
  "use strict";
  const FRAMES_PER_SECOND = 25, HOLD_SECONDS = 1.5, MIN_EDGE = 0.5, TRAIL_STEP = 3;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const PLAY = '<svg width="16" height="16" viewBox="0 0 16 16"><path d="M4 2l10 6-10 6z"/></svg>';
  const PAUSE = '<svg width="16" height="16" viewBox="0 0 16 16">' +
    '<path d="M3 2h4v12H3zM9 2h4v12H9z"/></svg>';

  function mix(colour, other, share) {
    const part = (text, at) => parseInt(text.slice(at, at + 2), 16);
    return "rgb(" + [1, 3, 5].map((at) =>
      Math.round(share * part(colour, at) + (1 - share) * part(other, at))).join(",") + ")";
  }

  function outline(context, shape, x, y, r) {
    context.beginPath();
    const corners = { cube: 4, cylinder: 6 }[shape];
    if (!corners) {
      context.arc(x, y, r, 0, 2 * Math.PI);
      return;
    }
    const size = r * Math.sqrt(Math.PI / ((corners / 2) * Math.sin((2 * Math.PI) / corners)));
    for (let k = 0; k < corners; k++) {
      const angle = (shape === "cube" ? Math.PI / 4 : 0) + (2 * Math.PI * k) / corners;
      context.lineTo(x + size * Math.cos(angle), y + size * Math.sin(angle));
    }
    context.closePath();
  }

  function drawObject(context, o, x, y, r) {
    context.fillStyle = "rgba(0,0,0,.16)";
    outline(context, o.shape, x + 0.07 * r, y + 0.13 * r, 1.02 * r);
    context.fill();
    context.fillStyle = mix(o.colour, "#000000", 0.72);
    outline(context, o.shape, x, y, r);
    context.fill();
    context.fillStyle = o.colour;
    outline(context, o.shape, x, y, 0.88 * r);
    context.fill();
    if (o.material !== "metal") return;
    for (const [size, share] of [[0.42, 0.8], [0.3, 0.55], [0.16, 0.05]]) {
      context.fillStyle = mix(o.colour, "#ffffff", share);
      context.beginPath();
      context.arc(x - 0.26 * r, y - 0.26 * r, size * r, 0, 2 * Math.PI);
      context.fill();
    }
  }

  function drawEdge(context, from, to, half, colours) {
    for (const [size, colour] of [[1.7 * half, colours.rim], [half, colours.edge]]) {
      context.strokeStyle = context.fillStyle = colour;
      context.lineWidth = 2 * size;
      context.beginPath();
      context.moveTo(...from);
      context.lineTo(...to);
      context.stroke();
      for (const [x, y] of [from, to]) {
        context.beginPath();
        context.arc(x, y, 1.6 * size, 0, 2 * Math.PI);
        context.fill();
      }
    }
  }

  function drawStar(context, x, y, r, colours) {
    for (const [size, colour] of [[1.35 * r, colours.rim], [r, colours.contact]]) {
      context.fillStyle = colour;
      context.beginPath();
      for (let k = 0; k < 16; k++) {
        const reach = k % 2 ? size / 2 : size, angle = (2 * Math.PI * k) / 16;
        context.lineTo(x + reach * Math.cos(angle), y + reach * Math.sin(angle));
      }
      context.closePath();
      context.fill();
    }
  }

  // paths: for each frame null, or [x, y] in thousandths of the side.
  function drawTrail(context, path, frame, r, scale, length) {
    let first = frame;
    while (first > Math.max(0, frame - length) && path[first - 1]) first--;
    for (let t = first; t < frame; t += TRAIL_STEP) {
      const age = (frame - t) / length, end = path[Math.min(t + TRAIL_STEP, frame)];
      context.globalAlpha = 0.6 * (1 - age);
      context.lineWidth = r * (0.5 - 0.3 * age);
      context.beginPath();
      context.moveTo(path[t][0] * scale, path[t][1] * scale);
      context.lineTo(end[0] * scale, end[1] * scale);
      context.stroke();
    }
    context.globalAlpha = 1;
  }

  function drawPanel(canvas, scene, panel, frame, colours) {
    const side = Math.round(canvas.clientWidth * (window.devicePixelRatio || 1));
    if (!side) return;
    if (canvas.width !== side) canvas.width = canvas.height = side;
    const context = canvas.getContext("2d"), scale = side / 1000, r = scene.radius * scale;
    context.fillStyle = colours.floor;
    context.fillRect(0, 0, side, side);
    if (scene.view) {
      const [from, size] = [(500 - scene.view) * scale, 2 * scene.view * scale];
      context.fillStyle = colours.view;
      context.fillRect(from, from, size, size);
      context.strokeStyle = colours.border;
      context.lineWidth = side / canvas.clientWidth;
      context.strokeRect(from, from, size, size);
    }
    const at = (path, t) => path[t] && [path[t][0] * scale, path[t][1] * scale];
    panel.paths.forEach((path, i) => {
      if (!path[frame]) return;
      context.strokeStyle = scene.objects[i].colour;
      drawTrail(context, path, frame, r, scale, scene.trail);
    });
    const ghost = panel.ghost && at(panel.ghost.path, frame);
    if (ghost) {
      const o = scene.objects[panel.ghost.index];
      context.setLineDash([0.38 * r, 0.3 * r]);
      context.strokeStyle = o.colour;
      context.lineWidth = 0.13 * r;
      outline(context, o.shape, ...ghost, r);
      context.stroke();
      context.setLineDash([]);
    }
    panel.paths.forEach((path, i) => {
      if (path[frame]) drawObject(context, scene.objects[i], ...at(path, frame), r);
    });
    for (const [i, j, strength] of panel.edges[frame] || []) {
      const half = r * (0.08 + 0.16 * (strength / 100 - MIN_EDGE));
      drawEdge(context, at(panel.paths[i], frame), at(panel.paths[j], frame), half, colours);
    }
    for (const [when, x, y] of panel.contacts) {
      const age = frame - when;
      if (age < 0 || age >= scene.contactFrames) continue;
      const size = r * (0.75 - (0.5 * age) / scene.contactFrames);
      drawStar(context, x * scale, y * scale, size, colours);
    }
  }

  function start(figure) {
    figure.dataset.ready = "yes";
    const scene = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
    const canvases = [...figure.querySelectorAll("canvas")];
    const titles = [...figure.querySelectorAll(".scene-title")];
    const button = figure.querySelector("button"), slider = figure.querySelector("input");
    const label = figure.querySelector(".scene-frame");
    const last = scene.frames - 1;
    let playing = false, stoppedByUser = still.matches;
    let time = Number(slider.value), before = 0, started = false;

    function draw() {
      const style = getComputedStyle(figure), frame = Math.min(Math.floor(time), last);
      const colours = {};
      for (const name of ["floor", "view", "border", "edge", "contact", "rim"]) {
        colours[name] = style.getPropertyValue("--scene-" + name).trim();
      }
      scene.panels.forEach((panel, k) => {
        const predicted = panel.predictedFrom >= 0 && frame >= panel.predictedFrom;
        titles[k].firstChild.data = (predicted && panel.predictedTitle) || panel.title;
        titles[k].classList.toggle("is-predicted", predicted);
        canvases[k].classList.toggle("is-predicted", predicted);
        drawPanel(canvases[k], scene, panel, frame, colours);
      });
      slider.value = frame;
      slider.classList.toggle("is-predicted", frame >= scene.observed);
      slider.setAttribute("aria-valuetext", "frame " + frame);
      label.textContent = "frame " + frame;
    }

    function tick(now) {
      if (!playing) return;
      time += (before ? Math.min(now - before, 100) / 1000 : 0) * FRAMES_PER_SECOND;
      before = now;
      if (time > last + HOLD_SECONDS * FRAMES_PER_SECOND) time = 0;
      draw();
      requestAnimationFrame(tick);
    }

    function play(on) {
      if (on === playing) return;
      playing = on;
      before = 0;
      if (on && !started) time = 0; // until then one predicted frame is shown
      started = true;
      button.innerHTML = on ? PAUSE : PLAY;
      button.setAttribute("aria-label", on ? "pause" : "play");
      if (on) requestAnimationFrame(tick);
    }

    function toggle() {
      stoppedByUser = playing;
      if (!playing && time >= last) time = 0;
      play(!playing);
    }

    function seek(frame) {
      stoppedByUser = started = true;
      play(false);
      time = Math.max(0, Math.min(last, frame));
      draw();
    }

    button.innerHTML = PLAY;
    button.addEventListener("click", toggle);
    slider.addEventListener("input", () => seek(Number(slider.value)));
    canvases.forEach((canvas) => canvas.addEventListener("click", toggle));
    figure.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10 }[event.key];
      if (event.key === " " && event.target !== button) toggle();
      else if (event.key === "Home") seek(0);
      else if (event.key === "End") seek(last);
      else if (step) seek(Math.floor(time) + step);
      else return;
      event.preventDefault();
    });
    new IntersectionObserver((entries) => {
      play(entries[entries.length - 1].isIntersecting && !stoppedByUser);
    }, { threshold: 0.25 }).observe(figure);
    new ResizeObserver(draw).observe(figure);
    dark.addEventListener("change", draw);
    draw();
  }

  document.querySelectorAll("figure.scene:not([data-ready])").forEach(start);
})();
