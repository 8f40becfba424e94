-- Lines held, asked for in vain, read, taken back: what a call has done of the 4,000 it may do.
local LINES_MAX = 4000
local lines_done = 0
