// SPDX-License-Identifier: Apache-2.0

public import BackendKit
internal import Platform
public import USB

/// `dice:sides=N`: a USB device that throws a die once a second and reports the result.
public final class DiceBackend: OperableBackend {
    public static let scheme = "dice"
    public static let summary = "a die that is thrown once a second"
    public static let example = "dice:sides=20"
    public static let parameters = [
        Parameter("sides", value: "N", summary: "2 to 255; default 6")
    ]
    public static let operations = [
        BackendOperation(
            "load", summary: "Load a die of a running server, so that it always shows one number.",
            device: "die",
            arguments: [
                BackendOperation.Argument(
                    "number", .integer(0...255), summary: "The number; 0 makes the die fair again.")
            ],
            example: "6", confirmation: "loaded with {number}", absence: "cannot be loaded")
    ]

    private let dice: Dice
    private weak var bus: (any USBBus)?

    public init(
        _ specification: DeviceSpecification, context: BackendContext
    ) throws(BackendError) {
        let sides: UInt8 = try specification.number("sides", in: 2...255) ?? 6
        dice = Dice(sides: sides, loop: context.loop)
    }

    public func start(on bus: any USBBus) throws(BackendError) {
        do throws(AttachError) {
            try bus.attach(dice)
            self.bus = bus
        } catch {
            throw BackendError(cannotAttach: dice.summary, error)
        }
    }

    public func stop() { bus?.detach(dice) }

    public func execute(_ call: OperationCall, completion: @escaping (BackendError?) -> Void) {
        let number = call.integer("number") ?? 0
        guard number <= dice.sides else {
            return completion(
                BackendError("the die has no side \(number), but \(dice.sides) sides"))
        }
        dice.loadedNumber = number == 0 ? nil : UInt8(number)
        completion(nil)
    }
}

/// The device: an interrupt endpoint for the results, and a vendor request for the number of sides.
final class Dice: USBDevice {
    static let endpoint = EndpointAddress(1, .in)

    let speed = USBSpeed.high
    let summary: String
    let sides: UInt8
    /// The result of every throw; `nil` for a fair die.
    var loadedNumber: UInt8?

    private let loop: any EventLoop
    private weak var port: (any USBPort)?
    private var controlPipe: DefaultControlPipe
    /// The interrupt transfers that wait for a result, oldest first.
    private var waiting: [Transfer] = []
    private var nextThrow: Watch?

    init(sides: UInt8, loop: any EventLoop) {
        self.sides = sides
        self.loop = loop
        summary = "dice with \(sides) sides"
        controlPipe = DefaultControlPipe(
            DeviceDescription(
                speed: speed,
                device: DeviceDescriptor(
                    usbVersion: 0x0200, maxPacketSize: 64, vendor: 0x1209, product: 0x0001),
                configurations: [
                    ConfigurationDescriptor(interfaces: [
                        InterfaceDescriptor(
                            interfaceClass: .vendorSpecific,
                            endpoints: [
                                EndpointDescriptor(
                                    Self.endpoint, .interrupt, maxPacketSize: 1, interval: 4)
                            ])
                    ])
                ],
                strings: ["usbvfiod", "Dice", "0001"]))
    }

    func attach(to port: any USBPort) {
        self.port = port
        reset()
        scheduleThrow()
    }

    func detached() {
        nextThrow = nil
        port = nil
        waiting = []
    }

    func reset() {
        controlPipe.reset()
        let transfers = waiting
        waiting = []
        for transfer in transfers { port?.complete(transfer.completion(.cancelled)) }
    }

    func submit(_ transfer: Transfer) {
        switch transfer.kind {
        case .control(let setup):
            switch controlPipe.handle(transfer, setup) {
            case .answered(let completion, _): port?.complete(completion)
            case .forDevice: port?.complete(answer(setup, transfer))
            }
        case .interrupt where controlPipe.isHalted(Self.endpoint):
            port?.complete(transfer.completion(.stalled))
        case .interrupt where transfer.endpoint == Self.endpoint && controlPipe.configuration != 0:
            waiting.append(transfer)
        default:
            port?.complete(transfer.completion(.failed))
        }
    }

    func cancel(_ id: Transfer.ID) {
        guard let index = waiting.firstIndex(where: { $0.id == id }) else { return }
        port?.complete(waiting.remove(at: index).completion(.cancelled))
    }

    /// Answers the vendor request 1 with the number of sides, and stalls all others.
    private func answer(_ setup: SetupPacket, _ transfer: Transfer) -> Transfer.Completion {
        guard setup.kind == .vendor, setup.request == 1, setup.direction == .in else {
            return transfer.completion(.stalled)
        }
        return transfer.completion(sending: [sides], for: setup)
    }

    private func scheduleThrow() {
        nextThrow = loop.schedule(at: loop.now + .seconds(1)) { [weak self] in
            self?.throwOnce()
            self?.scheduleThrow()
        }
    }

    /// Completes the oldest transfer with a result; without a transfer the result is lost.
    private func throwOnce() {
        guard !waiting.isEmpty else { return }
        let transfer = waiting.removeFirst()
        let count = transfer.buffer.copy(from: [loadedNumber ?? UInt8.random(in: 1...sides)])
        port?.complete(transfer.completion(.completed, transferred: count))
    }
}
