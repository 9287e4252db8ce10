// Asks the gateway by dicomweb-client, the client below many web viewers: search, metadata, a file, a frame.
//
// node client.mjs <node_modules> <DICOMweb root> <StudyInstanceUID>: JSON to standard output.
import { createRequire } from 'node:module';
import { join } from 'node:path';

const [modules, root, study] = process.argv.slice(2);
const require = createRequire(join(modules, 'x'));
globalThis.XMLHttpRequest = require('xhr2');
const { api } = require('dicomweb-client');
const client = new api.DICOMwebClient({ url: root });

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

process.stdout.write(JSON.stringify({ instances: metadata.length, name: value(found, '00100010')?.Alphabetic, faults }));
