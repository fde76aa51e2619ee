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

# Runs a recipe as the experiment of its name. If the name is taken, the experiment gets the first free one of `name.2`,
# `name.3` and so on, because DVC would refuse the name. Options of the user come last, so that they win.
recipe() {
  local name=$1 named=$1 number=1
  shift
  case " $* " in
  *" --name"* | *" -n "*) ;;
  *)
    while [ -n "$(git for-each-ref --count=1 "refs/exps/*/*/$named")" ]; do
      number=$((number + 1))
      named=$name.$number
    done
    [ "$named" = "$name" ] || echo "there is an experiment $name already, so this one is $named"
    ;;
  esac
  dvc exp run --name "$named" "$@"
}
