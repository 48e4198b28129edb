// Lets the search work in pages that are opened from a disk, where a browser refuses to start its worker: it runs in a
// hidden frame instead. The plugin "offline" expects a file of this name, and would else load one from another host.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    #frame = document.createElement("iframe");
    #loaded = new Promise((resolve) => this.#frame.addEventListener("load", resolve));

    constructor(address) {
      super();
      this.#loaded.then(() => {
        this.#frame.contentWindow.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      });
      this.#frame.hidden = true;
      this.#frame.srcdoc = `<script src="${address}"></script>`;
      document.body.append(this.#frame);
    }

    postMessage(data) {
      this.#loaded.then(() => this.#frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.#frame.remove();
    }
  };
}
