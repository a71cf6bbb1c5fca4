#!/usr/bin/env bash
# Send one request to a running service and check its answer, for scripts that expect these lines:
#   test-step4-video-generation.sh AUDIO IMAGE PROMPT
# AUDIO and IMAGE lie in the folder that the service knows as SHARED_DIR. API_URL, TOKEN, SHARED (that folder here) and
# OUTPUT (the service's OUTPUT_DIR here) may be set; `make smoke` checks more.
set -euo pipefail
api=${API_URL:-http://127.0.0.1:8200} shared=$(realpath "${SHARED:-shared}") output=${OUTPUT:-output}
fail() { printf '✗ %s\n' "$@"; exit 1; }
field() { python3 -c 'import json, sys; print(json.load(sys.stdin).get(sys.argv[1], ""))' "$1"; }
call() { curl --silent --show-error --max-time "${TIMEOUT:-600}" ${TOKEN:+-H "Authorization: Bearer $TOKEN"} "$@"; }
# The path relative to the shared folder, as the service takes it.
inside() {
  [[ -f $1 ]] || fail "$2 file not found: $1"
  local path; path=$(realpath "$1")
  [[ $path == "$shared"/* ]] || fail "$2 file is not in the shared folder $shared: $1"
  echo "${path#"$shared"/}"
}

[[ $# == 3 ]] || fail "usage: $0 AUDIO IMAGE PROMPT"
echo "ℹ Step 4: InfiniteTalk Video Generation Test"
audio=$(inside "$1" Audio) || { echo "$audio"; exit 1; }
image=$(inside "$2" Image) || { echo "$image"; exit 1; }
health=$(call --fail "$api/api/health") || fail "Service health check failed: $api"
[[ $(field status <<<"$health") == healthy ]] || fail "Service is not healthy: $health"
echo "✓ Service is healthy"
request=$(python3 -c 'import json, sys; print(json.dumps(dict(zip(("audio_path", "image_path", "prompt"), sys.argv[1:]))))' \
  "$audio" "$image" "$3")
echo "✓ Request payload prepared"
echo "⚠ This may take 3-5 minutes..."
SECONDS=0
answer=$(call -X POST "$api/api/generate-video" -H 'Content-Type: application/json' -d "$request") || fail "No answer from $api"
video=$(field video_path <<<"$answer")
[[ $video ]] || fail "Video generation failed" "Response: $answer"
echo "✓ Video generation completed in ${SECONDS}s"
name=$(basename "$(dirname "$video")")/$(basename "$video")
if [[ -f $output/$name ]]; then
  size=$(wc -c <"$output/$name") place=$output/$name
else
  size=$(call --fail "$api/api/videos/$name" | wc -c) || fail "The video cannot be fetched: $name"
  place=$api/api/videos/$name
fi
echo "✓ Video file created: $place"
echo "  Size: $((size / 1048576))MB"
echo "  Duration: $(field duration_seconds <<<"$answer")s"
echo "  Resolution: $(field resolution <<<"$answer")"
echo "  Frames: $(field frame_count <<<"$answer")"
echo "✓ Step 4 (InfiniteTalk Video Generation): PASSED"
