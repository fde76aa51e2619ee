# Each recipe sources this file. A recipe is the committed params.yaml with some changes, whatever ran before it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! command -v dvc > /dev/null; then
  echo "error: dvc is not installed here; \`source .venv/bin/activate\` first" >&2
  exit 1
fi
if ! git diff --quiet HEAD -- params.yaml; then
  echo "error: params.yaml has changes, which would become part of the recipe; commit them, or drop them with \`git restore params.yaml\`" >&2
  exit 1
fi
