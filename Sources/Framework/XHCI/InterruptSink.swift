// SPDX-License-Identifier: Apache-2.0

/// Where the controller's interrupts go: MSI-X behind it, a counter in a test.
public protocol InterruptSink: AnyObject {
    /// Sends the message of an interrupter's vector.
    func signal(vector: Int)
}
