// 128-bit integers, under a name that -Wpedantic accepts.
#pragma once

namespace stoker {

__extension__ typedef unsigned __int128 u128;

}  // namespace stoker
