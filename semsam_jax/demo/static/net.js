// Requests to the server; an error carries a sentence for the visitor.
let pending = 0;
export const isBusy = () => pending > 0;
export const onBusy = { change: () => {} };

export async function request(path, body, { isRaw = false, isQuiet = false } = {}) {
  pending += !isQuiet; onBusy.change();
  try {
    const response = await fetch(`api/${path}`, {
      method: "POST", body: isRaw ? body : JSON.stringify(body),
      headers: { "content-type": isRaw ? "application/octet-stream" : "application/json" },
    });
    if (response.ok) return response;
    const details = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
    throw Object.assign(new Error(details.error), { isGone: details.is_gone, status: response.status });
  } catch (error) {
    if (error instanceof TypeError) throw new Error("The server cannot be reached, or it refused the file.");
    throw error;
  } finally {
    pending -= !isQuiet; onBusy.change();
  }
}

export const getInfo = async () => {
  const response = await fetch("api/info");
  if (!response.ok) throw new Error((await response.json()).error);
  return response.json();
};

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
