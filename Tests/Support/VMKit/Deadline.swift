// SPDX-License-Identifier: Apache-2.0

import Foundation

/// A time by which an event must have occurred.
///
/// Tests wait for events, never for time to pass. Limits are generous, for busy machines: only a
/// failure takes that long.
public struct Deadline: Sendable {
    private let end: ContinuousClock.Instant

    /// The time `limit` from now.
    public init(_ limit: Duration) {
        end = .now + limit
    }

    /// The remaining milliseconds, for `poll`; 0 once the deadline has passed.
    var milliseconds: Int32 {
        let left = ContinuousClock.now.duration(to: end)
        return Int32(max(0, min(left / .milliseconds(1), 1_000_000)))
    }

    var hasPassed: Bool { ContinuousClock.now >= end }
}

/// A failure of a virtual machine or of a program around it.
public struct VMError: Error, CustomStringConvertible {
    /// A sentence, followed by details that help to find the cause.
    public let description: String

    /// An error with details, such as the end of a log, below the sentence.
    public init(_ sentence: String, detail: String = "") {
        let detail = detail.trimmingCharacters(in: .whitespacesAndNewlines)
        description = detail.isEmpty ? sentence : "\(sentence)\n\(detail)"
    }
}

extension String {
    /// The last lines, for the details of an error.
    func lastLines(_ count: Int) -> String {
        split(separator: "\n", omittingEmptySubsequences: true).suffix(count)
            .joined(separator: "\n")
    }
}
