# Sourced by each recipe, which is the committed params.yaml and what it changes in it, whatever ran before.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! command -v dvc > /dev/null; then
  echo "error: dvc is not there; \`source .venv/bin/activate\` first" >&2
  exit 1
fi
if ! git diff --quiet HEAD -- params.yaml; then
  echo "error: params.yaml has changes, which would go into the recipe; commit them, or drop them with \`git restore params.yaml\`" >&2
  exit 1
fi
