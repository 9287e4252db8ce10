// Asks the gateway by fhir-kit-client: what it can do, a search, its pages, what the matches refer to, what is refused.
//
// node fhir.mjs <node_modules> <FHIR root> <StudyInstanceUID>: JSON to standard output.
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [modules, root, study] = process.argv.slice(2);
const module = await import(pathToFileURL(join(modules, 'fhir-kit-client', 'dist', 'index.js')));
const client = new (module.default ?? module.Client)({ baseUrl: root });

const faults = [];
const check = (name, holds) => holds || faults.push(name);
const matches = bundle => (bundle.entry ?? []).filter(one => one.search.mode === 'match').map(one => one.resource);

const statement = await client.capabilityStatement();
const served = statement.rest[0].resource.map(one => one.type);
check('ImagingStudy is not in the CapabilityStatement', served.includes('ImagingStudy'));

const identifier = `urn:dicom:uid|urn:oid:${study}`;
const found = await client.search({ resourceType: 'ImagingStudy', searchParams: { identifier } });
const [first, ...rest] = matches(found);
check(`${1 + rest.length} studies of one UID`, first && !rest.length);
const read = await client.read({ resourceType: 'ImagingStudy', id: first.id });
const patient = await client.resolve({ reference: read.subject.reference });
check('the subject is no Patient', patient.resourceType === 'Patient');
const endpoint = await client.resolve({ reference: read.endpoint[0].reference });
check('the endpoint has no address', Boolean(endpoint.address));

const ids = [];
for (let page = await client.search({ resourceType: 'ImagingStudy', searchParams: { _count: 7 } }); page;) {
  ids.push(...matches(page).map(one => one.id));
  page = page.link.some(one => one.relation === 'next') ? await client.nextPage({ bundle: page }) : null;
}
check('a study is on two pages', new Set(ids).size === ids.length);
check('the study is on no page', ids.includes(first.id));

const refused = async (name, ask, status) => {
  const error = await ask().then(() => null, one => one);
  check(`${name}: ${error?.response?.status} instead of ${status}`, error?.response?.status === status);
  check(`${name}: no OperationOutcome`, error?.response?.data?.resourceType === 'OperationOutcome');
};
await refused('an unknown id', () => client.read({ resourceType: 'ImagingStudy', id: 'no-such-id' }), 404);
await refused('an unknown parameter',
  () => client.search({ resourceType: 'ImagingStudy', searchParams: { 'no-such': '1' } }), 400);
await refused('a write', () => client.create({ resourceType: 'Patient', body: { resourceType: 'Patient' } }), 405);

process.stdout.write(JSON.stringify({
  version: statement.fhirVersion, instances: (read.series ?? []).reduce((sum, one) => sum + one.instance.length, 0),
  family: patient.name?.[0]?.family ?? null, faults,
}));
