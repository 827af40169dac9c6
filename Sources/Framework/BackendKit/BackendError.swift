// SPDX-License-Identifier: Apache-2.0

public import USB

/// An error of a backend, with a message for the operator: what is wrong and what to do.
public struct BackendError: Error, Equatable, CustomStringConvertible {
    /// The message, without a full stop at its end.
    public let reason: String
    /// Whether the request took effect all the same, with a loss of data.
    public let tookEffect: Bool

    /// Creates an error with a message for the operator.
    ///
    /// - Parameters:
    ///   - reason: what is wrong and what to do, without a full stop at its end.
    ///   - tookEffect: whether the request took effect all the same, with a loss of data.
    public init(_ reason: String, tookEffect: Bool = false) {
        self.reason = reason
        self.tookEffect = tookEffect
    }

    /// Explains why a device cannot be attached to the bus.
    ///
    /// - Parameters:
    ///   - summary: the device in a few words.
    ///   - error: the error of the bus.
    ///   - remedy: what helps besides detaching another device, such as `use speed=high`.
    public init(cannotAttach summary: String, _ error: AttachError, remedy: String? = nil) {
        var reason = "cannot attach '\(summary)': \(error)"
        if case .noFreePort = error {
            reason += "; \(remedy.map { "\($0) or " } ?? "")detach a device"
        }
        self.init(reason)
    }

    /// The message.
    public var description: String { reason }
}
