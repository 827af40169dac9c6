// SPDX-License-Identifier: Apache-2.0

import Foundation

/// A moment by which something must have happened.
///
/// Tests wait for events, never for time to pass. Limits are generous, for machines that have much else
/// to do: only a failure waits for them.
public struct Deadline: Sendable {
    private let end: ContinuousClock.Instant

    /// The moment `limit` from now.
    public init(_ limit: Duration) {
        end = .now + limit
    }

    /// What is left, in the form that `poll` takes: milliseconds, 0 when it has passed.
    var milliseconds: Int32 {
        let left = ContinuousClock.now.duration(to: end)
        return Int32(max(0, min(left / .milliseconds(1), 1_000_000)))
    }

    var hasPassed: Bool { ContinuousClock.now >= end }
}

/// Why a virtual machine, or a program around one, did not do what a test needs.
public struct VMError: Error, CustomStringConvertible {
    /// One sentence, then whatever helps to find the cause.
    public let description: String

    /// An error with a text of any length, such as a log's end, below the sentence.
    public init(_ sentence: String, detail: String = "") {
        let detail = detail.trimmingCharacters(in: .whitespacesAndNewlines)
        description = detail.isEmpty ? sentence : "\(sentence)\n\(detail)"
    }
}

extension String {
    /// The last lines, for an error's detail.
    func lastLines(_ count: Int) -> String {
        split(separator: "\n", omittingEmptySubsequences: true).suffix(count)
            .joined(separator: "\n")
    }
}
