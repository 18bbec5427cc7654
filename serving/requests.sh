#!/bin/sh
# The REST API with curl: sh serving/requests.sh [MODEL] [HOST:PORT]
# For a classifier that reads texts, such as the model `packages` of make demo.
set -eu
model=${1:-packages}
server=http://${2:-localhost:8501}
get() { curl -sS --fail-with-body "$server$1"; echo; }
post() { curl -sS --fail-with-body -H 'Content-Type: application/json' -d "$2" "$server$1"; echo; }

# States of the versions, and the signatures.
get "/v1/models/$model"
get "/v1/models/$model/metadata"

# One answer per text.
post "/v1/models/$model:predict" '{"instances": [{"text": "Returns the inverse of a matrix."}]}'

# The same by column.
post "/v1/models/$model:predict" '{"inputs": {"text": ["Returns the inverse of a matrix.", "Opens a window."]}}'

# TF Serving's Classify, which reads tf.Examples.
post "/v1/models/$model:classify" '{"signature_name": "classify", "examples": [{"text": "Opens a window."}]}'

# A version or a label: /v1/models/MODEL/versions/1:predict, /v1/models/MODEL/labels/stable:predict.
