// Reads photos as flowers.data.images.read_image does: upright, on white, the first frame of an animation.

const PREVIEW = 480; // longest side in pixels
const MAX_MARKERS = 2000; // of a JPEG file before its size

// Width and height from the header of a file: a photo that is too large is never decoded.
async function headerSize(file) {
  const view = async (start, length) => {
    const bytes = new Uint8Array(length); // zeros after the end of the file
    bytes.set(new Uint8Array(await file.slice(start, start + length).arrayBuffer()));
    return new DataView(bytes.buffer);
  };
  const head = await view(0, 34);
  const text = (start, end) => String.fromCharCode(...new Uint8Array(head.buffer).slice(start, end));
  const u24 = (start) => head.getUint16(start, true) + (head.getUint8(start + 2) << 16);
  if (text(0, 8) === "\x89PNG\r\n\x1a\n") return [head.getUint32(16), head.getUint32(20)];
  if (/^GIF8[79]a$/.test(text(0, 6))) return [head.getUint16(6, true), head.getUint16(8, true)];
  if (text(0, 2) === "BM") {
    if (head.getUint32(14, true) === 12) return [head.getUint16(18, true), head.getUint16(20, true)];
    return [head.getInt32(18, true), Math.abs(head.getInt32(22, true))];
  }
  if (text(0, 4) === "RIFF" && text(8, 12) === "WEBP") {
    const kind = text(12, 16);
    if (kind === "VP8X") return [u24(24) + 1, u24(27) + 1];
    if (kind === "VP8L") return [(head.getUint32(21, true) & 0x3fff) + 1, ((head.getUint32(21, true) >> 14) & 0x3fff) + 1];
    return [head.getUint16(26, true) & 0x3fff, head.getUint16(28, true) & 0x3fff];
  }
  if (text(0, 3) === "\xff\xd8\xff") {
    for (let at = 2, count = 0; at < file.size && count < MAX_MARKERS; count += 1) {
      const marker = await view(at, 9);
      if (marker.getUint8(0) !== 0xff) break;
      const code = marker.getUint8(1);
      const isFrame = code >= 0xc0 && code <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(code);
      if (isFrame) return [marker.getUint16(7), marker.getUint16(5)];
      at += code === 0xff ? 1 : code === 0x01 || (code >= 0xd0 && code <= 0xd8) ? 2 : 2 + marker.getUint16(2);
    }
    return [0, 0];
  }
  if (!file.size) throw new Error("empty");
  const isHeic = text(4, 8) === "ftyp" && /^(hei|hev|mif1|msf1)/.test(text(8, 12));
  const isTiff = /^(II\*\0|MM\0\*)/.test(text(0, 4));
  if (isHeic || isTiff) throw new Error(`${isHeic ? "HEIC" : "TIFF"} is not supported: save the photo as JPEG or PNG`);
  throw new Error("not a JPEG, PNG, WebP, BMP or GIF image");
}

// Returns the photo as a bitmap, with the pixels that are in the file. An error says why there is none.
export async function openPhoto(file, maxPixels) {
  const [width, height] = await headerSize(file);
  if (width * height > maxPixels) {
    throw new Error(`${width} x ${height} pixels, over the limit of ${maxPixels.toLocaleString("en")}`);
  }
  try {
    const options = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
    return await createImageBitmap(new Blob([file]), options);
  } catch {
    throw new Error("damaged, or a kind of image that this browser cannot read");
  }
}

// Draws a part of a bitmap, all of it by default, on a white canvas of the given size.
export function draw(bitmap, [width, height], [left, top, right, bottom] = [0, 0, bitmap.width, bitmap.height]) {
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(width)), Math.max(1, Math.round(height)));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, left, top, right - left, bottom - top, 0, 0, canvas.width, canvas.height);
  return canvas;
}

// Returns a small JPEG of a bitmap.
export function preview(bitmap) {
  const scale = Math.min(1, PREVIEW / Math.max(bitmap.width, bitmap.height));
  return draw(bitmap, [bitmap.width * scale, bitmap.height * scale]).convertToBlob({ type: "image/jpeg", quality: 0.85 });
}
