/** A WebSocket that reconnects: browsers do this only for server-sent events. */

const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 8000;

/** @param {string} path */
export function address(path) {
  return new URL(path, location.href.replace(/^http/, "ws"));
}

export class Socket {
  /**
   * @param {string} path
   * @param {(message: any) => void} onMessage
   * @param {() => void} [onOpen]
   * @param {() => void} [onClose]
   */
  constructor(path, onMessage, onOpen, onClose) {
    this.url = address(path);
    this.onMessage = onMessage;
    this.onOpen = onOpen;
    this.onClose = onClose;
    this.pause = FIRST_PAUSE;
    this.connect();
  }

  connect() {
    this.socket = new WebSocket(this.url);
    this.socket.onopen = () => {
      this.pause = FIRST_PAUSE;
      this.onOpen?.();
    };
    this.socket.onmessage = (event) => this.onMessage(JSON.parse(event.data));
    this.socket.onclose = () => {
      this.onClose?.();
      setTimeout(() => this.connect(), this.pause);
      this.pause = Math.min(2 * this.pause, LONGEST_PAUSE);
    };
  }

  get open() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  /** @param {object} message */
  send(message) {
    this.socket?.send(JSON.stringify(message));
  }
}
