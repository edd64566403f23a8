// Replaces parts of the page by what the server sends. Without it the page
// loads itself again every ten seconds.
(function () {
  "use strict";
  var live = document.getElementById("live");
  function say(text, kind) {
    live.textContent = text;
    live.className = "quiet " + kind;
  }
  var source = new EventSource(document.body.dataset.events);
  source.onopen = function () { say("live", "on"); };
  source.onerror = function () { say("connection lost, trying again", "off"); };
  source.addEventListener("part", function (e) {
    var part = JSON.parse(e.data);
    var old = document.getElementById(part.id);
    if (!old) return;
    var t = document.createElement("template");
    t.innerHTML = part.html; // made by the server's templates, which escape
    old.replaceWith(t.content);
  });
})();
