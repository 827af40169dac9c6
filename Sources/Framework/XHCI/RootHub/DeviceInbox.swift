// SPDX-License-Identifier: Apache-2.0

internal import DequeModule
internal import USB

/// Messages from devices, in order, until the engine's next service pass.
final class DeviceInbox {
    enum Message {
        case completed(Transfer.Completion)
        /// The device disconnected itself; its port is not free yet.
        case disconnected(PortConnection)
        /// The device was detached from its port; its transfers have not failed yet.
        case detached(PortConnection)
        case woke(PortConnection)
    }

    private var messages: Deque<Message> = []

    var isEmpty: Bool { messages.isEmpty }

    func append(_ message: Message) { messages.append(message) }

    func next() -> Message? { messages.popFirst() }
}
