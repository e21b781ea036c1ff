// The one place where C++ errors become Python exceptions.
#pragma once

namespace stoker {

/// ArgumentError -> ValueError, SystemError -> OSError (errno, filename), CorruptShardError and ClosedError -> the
/// exceptions of stoker.errors, SupplyError -> what it holds.
void register_errors();

}  // namespace stoker
