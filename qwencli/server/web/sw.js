// llama-server's page leaves a worker of this name in the browser, which goes on showing that page from its caches. Where such a browser
// finds this server at the same address, this worker takes the other one's place, empties the caches and is gone. Our page has none.
self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(leave()));

async function leave() {
  for (const name of await caches.keys()) await caches.delete(name);
  await self.registration.unregister();
  for (const page of await self.clients.matchAll({ type: "window" })) page.navigate(page.url);
}
