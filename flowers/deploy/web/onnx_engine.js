// Classifies photos on this device, in a worker.

export async function load() {
  // A worker from a blob keeps the content security policy of the page. One from a file would have none.
  const script = `import ${JSON.stringify(new URL("worker.js", import.meta.url).href)};`;
  const worker = new Worker(URL.createObjectURL(new Blob([script], { type: "text/javascript" })), { type: "module" });
  const answered = () => new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => (data.failure ? reject(new Error(data.failure)) : resolve(data));
    worker.onerror = ({ message }) => reject(new Error(message || "a file is missing, or this browser is too old"));
  });
  const { classes, rejects } = await answered();
  return {
    classes,
    rejects,
    confidence: null,
    types: ["image/jpeg", "image/png", "image/webp", "image/bmp", "image/gif"],
    privacy: "Photos do not leave this device.",
    parallel: 1, // the worker answers one photo at a time
    classify(file) {
      const answer = answered();
      worker.postMessage(file);
      return answer;
    },
    explain: null,
  };
}
