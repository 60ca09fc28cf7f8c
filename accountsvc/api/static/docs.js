"use strict";

SwaggerUIBundle({
  url: "../openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  // Its badge would send our document to another site.
  validatorUrl: null,
});
