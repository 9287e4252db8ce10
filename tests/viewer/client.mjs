// Asks the gateway by dicomweb-client, the client below many web viewers: search, metadata, a file, a frame.
//
// node client.mjs <node_modules> <DICOMweb root> <StudyInstanceUID>: JSON to standard output.
import { createRequire } from 'node:module';
import { join } from 'node:path';

const [modules, root, study] = process.argv.slice(2);
const require = createRequire(join(modules, 'x'));
globalThis.XMLHttpRequest = require('xhr2');
const { api } = require('dicomweb-client');
const client = new api.DICOMwebClient({ url: root, verbose: false });

const value = (dataset, tag) => dataset[tag]?.Value?.[0];
const faults = [];
const check = (name, holds) => holds || faults.push(name);

const [found] = await client.searchForStudies({ queryParams: { StudyInstanceUID: study } });
const series = await client.searchForSeries({ studyInstanceUID: study });
const instances = await client.searchForInstances({ studyInstanceUID: study });
const metadata = await client.retrieveStudyMetadata({ studyInstanceUID: study });
const first = metadata[0];
const ids = {
  studyInstanceUID: study, seriesInstanceUID: value(first, '0020000E'), sopInstanceUID: value(first, '00080018'),
};
const size = value(first, '00280010') * value(first, '00280011') * value(first, '00280100') / 8;

const file = new Uint8Array(await client.retrieveInstance(ids));
check('a file is no DICOM file', String.fromCharCode(...file.slice(128, 132)) === 'DICM');
const [frame] = await client.retrieveInstanceFrames({ ...ids, frameNumbers: [1] });
check(`a frame has ${frame.byteLength} bytes, not ${size}`, frame.byteLength === size);
const [bulk] = await client.retrieveBulkData({ BulkDataURI: first['7FE00010'].BulkDataURI });
check(`the bulk data has ${bulk.byteLength} bytes, not ${size}`, bulk.byteLength === size);
check('the series are not those of the metadata',
  series.every(one => metadata.some(dataset => value(dataset, '0020000E') === value(one, '0020000E'))));
check('search and metadata differ', instances.length === metadata.length);

const ofSeries = { studyInstanceUID: study, seriesInstanceUID: ids.seriesInstanceUID };
const isDicom = buffer => String.fromCharCode(...new Uint8Array(buffer).slice(128, 132)) === 'DICM';
const whole = await client.retrieveStudy({ studyInstanceUID: study });
check('the study has another number of files', whole.length === metadata.length && whole.every(isDicom));
const part = await client.retrieveSeries(ofSeries);
const below = await client.retrieveSeriesMetadata(ofSeries);
check('the series has another number of files', part.length === below.length && part.every(isDicom));
const one = await client.retrieveInstanceMetadata(ids);
check('the metadata of an instance is of another', value(one[0] ?? one, '00080018') === ids.sopInstanceUID);

const uids = rows => rows.map(row => value(row, '0020000D'));
const all = uids(await client.searchForStudies());
const pages = [];
for (let offset = 0; offset <= all.length; offset += 9)
  pages.push(...uids(await client.searchForStudies({ queryParams: { limit: 9, offset } })));
check('the pages are not the whole', JSON.stringify(pages) === JSON.stringify(all));
const refused = await client.retrieveStudy({ studyInstanceUID: '1.2.3.4' }).then(() => 200, error => error.status);
check(`an unknown study: ${refused}`, refused === 404 || refused === 503);

process.stdout.write(JSON.stringify({ instances: metadata.length, name: value(found, '00100010')?.Alphabetic, faults }));
