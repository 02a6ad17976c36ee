/* How a screen looks, of a terminal and of a recording. xterm.js comes from elsewhere: `make vendor`. */
import "./styles-under-csp.js";
import { Terminal as Screen } from "./xterm.mjs";

/* What xterm.js does as many times as it is told. A device that says two billion would stop the page, so that is ignored. */
const MOST = { I: 1000, L: 1000, M: 1000, S: 1000, T: 1000, Z: 1000, b: 10000 };

export class Terminal extends Screen {
  constructor(options) {
    super(options);
    for (const [final, most] of Object.entries(MOST)) this.parser.registerCsiHandler({ final }, ([times]) => times > most);
  }
}

export const LOOK = {
  fontFamily: 'ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace', fontSize: 13, lineHeight: 1.25, cursorBlink: false, scrollback: 5000,
  theme: { background: "#0d1017", foreground: "#e3e7f0", cursor: "#928eff", selectionBackground: "#3b3f6b",
    black: "#1b2130", red: "#f98080", green: "#4ade80", yellow: "#fbbf24", blue: "#7aa2f7", magenta: "#c4a7ff", cyan: "#2dd4bf", white: "#cdd3e0",
    brightBlack: "#667086", brightRed: "#fca5a5", brightGreen: "#86efac", brightYellow: "#fde68a", brightBlue: "#a5c4ff", brightMagenta: "#ddd0ff", brightCyan: "#7eead9", brightWhite: "#ffffff" },
};
