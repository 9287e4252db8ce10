// Drives OHIF in a headless Chromium as a reader would, and writes down what it shows and what it asked.
//
// node viewer.mjs plan.json: `viewer` (OHIF's address), `gateway`, `chromium`, `pictures` (a directory),
// `modules` (where playwright-core lies) and `open`, a list of {name, path, shows}. JSON to standard output.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

const plan = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const { chromium } = createRequire(join(plan.modules, 'x'))('playwright-core');

const FLAGS = [
  '--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader', '--no-sandbox', '--disable-quic',
  '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync',
];
const PATIENCE = 90_000;

/** Every request to the gateway with its status, and whatever the page complains about. */
function watch(page) {
  const seen = { requests: [], faults: [] };
  page.on('response', response => {
    const url = response.url();
    if (url.startsWith(plan.gateway)) {
      const request = response.request();
      seen.requests.push({
        status: response.status(), method: request.method(), path: url.slice(plan.gateway.length),
        accept: request.headers()['accept'] ?? '', type: response.headers()['content-type'] ?? '',
      });
    } else if (response.status() >= 400) seen.faults.push(`${response.status()} ${url}`);
  });
  page.on('requestfailed', request => {
    const reason = request.failure()?.errorText ?? '';
    if (reason !== 'net::ERR_ABORTED') seen.faults.push(`${reason} ${request.url()}`);
  });
  page.on('pageerror', error => seen.faults.push(`page error: ${error.message}`));
  page.on('console', message => {
    if (message.type() === 'error') seen.faults.push(`console: ${message.text()}`);
  });
  return seen;
}

/** What the active viewport holds: the image's address, its decoded samples and the greys on the canvas. Runs in the page. */
function shown() {
  /** [column, row, red, green, blue] for pixels of the image in a grid, where the canvas has them. */
  const drawn = (viewport, image, pixels) => {
    const { imageData } = viewport.getImageData?.() ?? {};
    const { width, height } = viewport.canvas;
    const scale = width / viewport.canvas.clientWidth;
    const found = [];
    for (let down = 1; imageData && down < 48; down++)
      for (let across = 1; across < 48; across++) {
        const [column, row] = [Math.round(across * image.columns / 48), Math.round(down * image.rows / 48)];
        const [x, y] = viewport.worldToCanvas(imageData.indexToWorld([column, row, 0])).map(one => Math.floor(one * scale));
        if (x >= 0 && y >= 0 && x < width && y < height)
          found.push([column, row, ...pixels.slice(4 * (y * width + x), 4 * (y * width + x) + 3)]);
      }
    return found;
  };
  const viewports = window.cornerstone?.getRenderingEngines?.().flatMap(engine => engine.getViewports()) ?? [];
  return viewports.flatMap(viewport => {
    const id = viewport.getCurrentImageId?.();
    const image = id && window.cornerstone.cache.getImage(id);
    const canvas = viewport.canvas;
    if (!image || !canvas?.width) return [];
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    const greys = new Set();
    for (let at = 0; at < pixels.length; at += 4) greys.add(pixels[at]);
    const samples = image.voxelManager?.getScalarData?.() ?? image.getPixelData();
    let sum = 0;
    for (const sample of samples) sum += sample;
    return [{
      drawn: drawn(viewport, image, pixels), window: viewport.getProperties?.().voiRange ?? null,
      id, rows: image.rows, columns: image.columns, samples: samples.length, sum, colour: Boolean(image.color),
      scaled: Boolean(image.preScale?.scaled), greys: greys.size, of: viewport.getImageIds?.().length ?? 0,
    }];
  });
}

/** What tells that a page has come as far as it will: an image, the rows of the list, or OHIF's word that it cannot. */
async function ready(page, shows) {
  if (shows === 'images') await page.waitForFunction(hasDrawn, null, { timeout: PATIENCE, polling: 500 });
  else if (shows === 'list') await page.waitForSelector('tbody tr >> nth=0', { timeout: PATIENCE });
  await page.waitForLoadState('networkidle', { timeout: PATIENCE });
  if (shows === 'nothing') await page.waitForTimeout(3000);
}

async function open(context, one) {
  const page = await context.newPage();
  const seen = watch(page);
  await page.goto(plan.viewer + one.path);
  await ready(page, one.shows).catch(error => seen.faults.push(`waited in vain: ${error.message.split('\n')[0]}`));
  await page.waitForTimeout(1000);
  await page.screenshot({ path: join(plan.pictures, `${one.name}.png`) });
  const result = {
    name: one.name, ...seen, viewports: await page.evaluate(shown), text: await page.locator('body').innerText(),
    isolated: await page.evaluate(() => window.crossOriginIsolated),
  };
  await page.close();
  return result;
}

/** Whether some viewport has put an image on its canvas. Runs in the page. */
function hasDrawn() {
  const viewports = window.cornerstone?.getRenderingEngines?.().flatMap(engine => engine.getViewports()) ?? [];
  return viewports.some(viewport => {
    const id = viewport.getCurrentImageId?.();
    if (!id || !window.cornerstone.cache.getImage(id) || !viewport.canvas?.width) return false;
    const { width, height } = viewport.canvas;
    const pixels = viewport.canvas.getContext('2d').getImageData(0, 0, width, height).data;
    const first = pixels[0];
    for (let at = 0; at < pixels.length; at += 4) if (pixels[at] !== first) return true;
    return false;
  });
}

const browser = await chromium.launch({ executablePath: plan.chromium, headless: true, args: FLAGS });
const context = await browser.newContext({ viewport: { width: 1600, height: 1000 }, locale: 'en-GB' });
await context.addInitScript(() => localStorage.setItem('shownTours', JSON.stringify(['basicViewerTour'])));
const results = [];
for (const one of plan.open) {
  process.stderr.write(`${one.name}\n`);
  results.push(await open(context, one));
}
await browser.close();
process.stdout.write(JSON.stringify(results));
