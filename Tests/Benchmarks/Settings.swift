// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc

/// The settings of a run, from environment variables.
enum Settings {
    private static let environment = ProcessInfo.processInfo.environment

    /// The folder of the results.
    static let output = URL(filePath: environment["BENCH_OUTPUT"] ?? ".build/bench")

    /// The names of the parts to run, or a fragment of a name; empty for all parts.
    static let filter = environment["FILTER"] ?? ""

    /// The repetitions of each measurement, of which the median is reported.
    static let rounds = max(1, environment["BENCH_ROUNDS"].flatMap { Int($0) } ?? 5)

    /// The duration of each repetition.
    static let time: Duration = .milliseconds(
        max(10, environment["BENCH_MILLISECONDS"].flatMap { Int($0) } ?? 80))

    /// Whether ``filter`` selects the part.
    static func includes(_ part: String) -> Bool {
        filter.isEmpty || part.contains(filter) || filter.contains(part)
    }

    /// Whether a program is installed.
    static func has(_ program: String) -> Bool {
        let path = (environment["PATH"] ?? "") + ":/usr/sbin:/sbin"
        return path.split(separator: ":").contains { access("\($0)/\(program)", X_OK) == 0 }
    }
}

/// Prints the current step to standard error.
func progress(_ text: String) {
    FileHandle.standardError.write(Data("bench: \(text)\n".utf8))
}
