// SPDX-License-Identifier: Apache-2.0

/// A failed access to guest memory; on hardware, a bus error.
public struct DMAError: Error, Equatable {
    /// The cause of a failed access.
    public enum Reason: Sendable {
        /// A part of the range lies in no region, or in one that no client serves.
        case unmapped
        /// The range must not be written.
        case readOnly
        /// The client refused the access or did not reply, or its file lost the pages.
        case lost
        /// No staging memory is left for the data.
        case noBuffer
    }

    /// The first guest address of the access.
    public let address: GuestAddress
    /// The length of the access in bytes.
    public let count: Int
    public let reason: Reason

    public init(_ reason: Reason, at address: GuestAddress, count: Int) {
        self.reason = reason
        self.address = address
        self.count = count
    }
}

extension DMAError: CustomStringConvertible {
    /// The cause and the range, for log lines.
    public var description: String {
        let cause =
            switch reason {
            case .unmapped: "no guest memory"
            case .readOnly: "read-only guest memory"
            case .lost: "guest memory that the client no longer provides"
            case .noBuffer: "no staging memory left for guest memory"
            }
        return "\(cause) at \(address) (\(count) bytes)"
    }
}
