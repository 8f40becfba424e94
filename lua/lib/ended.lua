-- What a call on a reservation that has left `held` is told.
--- @include reservation.lua
local ENDED_STATUS = {[CONFIRMED] = 'already_confirmed', [RELEASED] = 'already_released',
  [EXPIRED] = 'reservation_expired'}
