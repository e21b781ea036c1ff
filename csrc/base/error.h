// The errors of the core. A message is a sentence: the thing, the rule, the value found, the path, what to do.
//
// `bindings/errors.cc` maps each type to its Python exception; nothing else does.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace stoker {

/// Joins its arguments as a stream would print them.
template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

/// An argument breaks its rule. Python: ValueError.
struct ArgumentError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The system refused. Python: OSError with `code` (an errno) and `path`, which it puts behind the message, if any.
struct SystemError : std::runtime_error {
  SystemError(int error_code, std::string file, const std::string& message)
      : std::runtime_error(message), code(error_code), path(std::move(file)) {}
  int code;
  std::string path;
};

/// The bytes of a shard break their format. Python: CorruptShardError.
struct CorruptShardError : std::runtime_error {
  static constexpr int64_t kWholeShard = -1;
  CorruptShardError(std::string file, int64_t sample_in_shard, const std::string& message)
      : std::runtime_error(message), path(std::move(file)), sample(sample_in_shard) {}
  std::string path;
  int64_t sample;  ///< zero-based, or kWholeShard
};

/// `path`, a shard's file, is not what it should be: "PATH WHAT. Fetch or write the shard again."
inline CorruptShardError corrupt_file(const std::string& path, const std::string& what) {
  return CorruptShardError(path, CorruptShardError::kWholeShard,
                           text(path, " ", what, ". Fetch or write the shard again."));
}

/// The same of one sample of it.
inline CorruptShardError corrupt_sample(const std::string& path, int64_t sample, const std::string& what) {
  return CorruptShardError(path, sample,
                           text("sample ", sample, " of ", path, " ", what, ". Fetch or write the shard again."));
}

/// A shard could not be made. Python: the exception that it has failed with there.
struct SupplyError : std::runtime_error {
  explicit SupplyError(std::string bytes)
      : std::runtime_error("a shard could not be made."), pickled(std::move(bytes)) {}
  std::string pickled;  ///< as Python's pickle writes it: threads of the core may let it go
};

/// The engine was closed, or belongs to another process. Python: LoaderClosedError.
struct ClosedError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace stoker
