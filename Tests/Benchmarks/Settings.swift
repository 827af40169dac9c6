// SPDX-License-Identifier: Apache-2.0

import Foundation
import Glibc

/// How the benchmarks are run.
enum Settings {
    private static let environment = ProcessInfo.processInfo.environment

    /// Where results go.
    static let output = URL(filePath: environment["BENCH_OUTPUT"] ?? ".build/bench")

    /// Only parts whose name contains it.
    static let filter = environment["FILTER"] ?? ""

    /// Repetitions of each measurement; the median counts.
    static let rounds = max(1, environment["BENCH_ROUNDS"].flatMap { Int($0) } ?? 5)

    /// How long each repetition takes.
    static let time: Duration = .milliseconds(
        max(10, environment["BENCH_MILLISECONDS"].flatMap { Int($0) } ?? 80))

    static func wants(_ part: String) -> Bool {
        filter.isEmpty || part.contains(filter) || filter.contains(part)
    }

    /// Whether a program can be found.
    static func has(_ program: String) -> Bool {
        let path = (environment["PATH"] ?? "") + ":/usr/sbin:/sbin"
        return path.split(separator: ":").contains { access("\($0)/\(program)", X_OK) == 0 }
    }
}

/// Prints the progress.
func progress(_ text: String) {
    FileHandle.standardError.write(Data("bench: \(text)\n".utf8))
}
