-- wrk: the same body again and again, by callers in turn.
-- wrk ... -s attack.lua URL -- TOKENS BODY
--   TOKENS  file, one token a line
--   BODY    file
-- Prints one line, as wrk.lua does.

local requests, position = {}, 0

function init(args)
  local body = io.open(args[2]):read("*a")
  for token in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("POST", nil,
      { ["Content-Type"] = "application/json", ["Authorization"] = "Bearer " .. token }, body)
  end
end

function request()
  position = position % #requests + 1
  return requests[position]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format("%d %d %d %d %d\n", summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
