// OHIF's configuration: the gateway is one data source, and each hospital's own root behind it another.
// run.py puts the addresses in the place of ROOTS: [[name, DICOMweb root], ...], the federation first.
const roots = ROOTS;

window.config = {
  routerBasename: null,
  extensions: [],
  modes: [],
  showStudyList: true,
  maxNumberOfWebWorkers: 2,
  showErrorDetails: 'always',
  investigationalUseDialog: { option: 'never' },
  defaultDataSourceName: roots[0][0],
  dataSources: roots.map(([name, root]) => ({
    namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
    sourceName: name,
    configuration: {
      friendlyName: name,
      name,
      qidoRoot: root,
      wadoRoot: root,
      qidoSupportsIncludeField: true,
      imageRendering: 'wadors',
      thumbnailRendering: 'wadors',
      enableStudyLazyLoad: true,
      supportsFuzzyMatching: true,
      supportsWildcard: true,
      bulkDataURI: { enabled: true },
    },
  })),
};
