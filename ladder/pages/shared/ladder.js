/** The ladder in the header: two tracks side by side, a step per rung, the current rung marked. */

const TOP = 2; // the viewBox is 92 high
const FOOT = 90;
const WIDTH = 28; // between the rails of a track
const LEFT = 4;
const GAP = 8; // between two tracks

/**
 * Both tracks stand on the ground. The longest one fills the height.
 * @param {Element} svg
 * @param {string[][]} tracks the numbers of the rungs, one list per track
 * @param {string} current the number of the rung that is served
 */
export function drawLadder(svg, tracks, current) {
  const step = (FOOT - TOP) / Math.max(...tracks.map((track) => track.length));
  svg.innerHTML = tracks.map((track, place) => drawTrack(track, LEFT + place * (WIDTH + GAP), step, current)).join("");
}

/**
 * @param {string[]} rungs
 * @param {number} left
 * @param {number} step
 * @param {string} current
 */
function drawTrack(rungs, left, step, current) {
  const top = FOOT - step * rungs.length;
  const rails = `<path class="rail" d="M${left} ${top}V${FOOT}M${left + WIDTH} ${top}V${FOOT}"/>`;
  const steps = rungs.map((rung, index) => {
    const mark = rung === current ? ' class="current"' : "";
    return `<path data-rung="${rung}"${mark} d="M${left} ${FOOT - step * (index + 0.5)}h${WIDTH}"/>`;
  });
  return `<g class="track">${rails}${steps.join("")}</g>`;
}
